"""Logins: codes exchanged for who the user is, with the AppSecret that only the broker has."""
