// An SDK for node, built by a recipe; stdin says line by line what to do, stdout answers with a line of JSON each.
// `node in_node.js RECIPE [SANDBOX]`: what is meant for WeChat goes to the sandbox; without one the recipe says it all.
'use strict';

const crypto = require('crypto');
const fs = require('fs');
const readline = require('readline');

const [recipe, sandbox] = [fs.readFileSync(process.argv[2], 'utf8'), process.argv[3]];

function built() {
  const api = new Function('require', `${recipe}\nreturn api;`)(require);
  if (api.getCache) api.getCache(); // its files belong to this directory
  if (sandbox && api.getConfig) api.getConfig().set('http', { baseURL: `${sandbox}/` });
  else if (sandbox && api.endpoint) api.endpoint = sandbox;
  else if (sandbox) api.prefix = `${sandbox}/cgi-bin/`;
  return api;
}

// Some call back, the others promise.
function asked(api, method, ...args) {
  const promises = api[method].constructor.name === 'AsyncFunction';
  if (promises || (!api.endpoint && api[method].length <= args.length)) return api[method](...args);
  return new Promise((resolve, reject) => api[method](...args, (err, data) => (err ? reject(err) : resolve(data))));
}

async function told(deed, ...args) {
  try {
    return await deed(...args);
  } catch (err) {
    return { errcode: err.code ?? null, kind: err.name, text: `${err.stack} ${JSON.stringify(err)}` };
  }
}

// How many followers there are; of wechat-jssdk, which makes no calls, its token and ticket.
async function call(api) {
  if (api.getClient) return (await api.getClient().get('cgi-bin/user/get')).toObject().total;
  if (!api.getGlobalTokenAndTicket) return (await asked(api, 'getFollowers')).total;
  const kept = await api.getGlobalTokenAndTicket(true);
  return { token: kept.accessToken, ticket: kept.jsapi_ticket };
}

// Built in a directory of its own, as in a container of its own.
function elsewhere() {
  const here = process.cwd();
  process.chdir(fs.mkdtempSync(`${here}/fleet-`));
  const api = built();
  process.chdir(here);
  return api;
}

const deeds = {
  call,
  session: async (api, code) => (await asked(api, 'getSessionKey', code)).data.openid,
  web: async (api, code) => (await asked(api, 'getAccessToken', code)).data.openid,
  crowd: (_, many) => Promise.all(Array.from({ length: many }, elsewhere).map((api) => told(call, api))),
  upload: async (api, path) => (await asked(api, 'uploadMedia', path, 'image')).media_id,
  download: async (api, id) => {
    const content = await asked(api, 'getMedia', id);
    return { size: content.length, sha256: crypto.createHash('sha256').update(content).digest('hex') };
  },
};

console.log = console.error; // some SDKs log there
(async () => {
  const api = built();
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const [name, ...args] = JSON.parse(line);
    process.stdout.write(`${JSON.stringify(await told(deeds[name], api, ...args))}\n`);
  }
  process.exit(0);
})();
