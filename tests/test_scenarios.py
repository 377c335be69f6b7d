"""What SCENARIOS.md lists, and the tests that try it: there is none without a test."""

import ast
import re
from functools import cache
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parent

TRIED: Final[dict[str, tuple[str, ...]]] = {
    # A. Crash and restart
    "1": (
        "test_crashpoints::test_killed_before_the_reservation_is_committed_nothing_has_happened",
        "test_crashpoints::test_killed_between_reservation_and_call_it_counts_as_spent_and_the_token_goes_on",
        "test_crashpoints::test_killed_again_while_a_crash_is_being_understood_it_is_understood_later",
        "test_keeper::test_a_crash_during_a_call_counts_as_spent_and_suspect_and_is_not_repeated_at_once",
        "test_store::test_a_reservation_is_on_disk_before_the_call_is_made",
    ),
    "2": (
        "test_crashpoints::test_killed_before_the_answer_is_stored_the_old_token_is_in_doubt_and_replaced_once",
        "test_crashpoints::test_killed_while_a_doubt_is_looked_into_the_token_is_still_replaced_once",
        "test_crashpoints::test_killed_during_a_forced_call_the_token_that_it_killed_is_not_served_again",
        "test_crash::test_killed_before_the_answer_the_call_is_spent_and_the_token_suspect_then_replaced",
    ),
    "3": (
        "test_crashpoints::test_killed_before_the_new_token_is_published_the_restart_serves_it",
        "test_crash::test_killed_after_the_call_was_settled_the_restart_serves_the_new_token",
    ),
    "4": (
        "test_crashpoints::test_killed_before_any_statement_of_a_migration_the_schema_is_old_or_new_and_never_half",
        "test_crashpoints::test_killed_during_a_checkpoint_the_file_is_whole_and_holds_all_that_was_committed",
        "test_upgrade::test_a_migration_is_whole_or_not_at_all",
    ),
    "5": (
        "test_kills::test_two_hundred_kills_at_random_moments_under_load_break_no_invariant",
        "test_kills::test_with_the_reservation_moved_behind_the_call_the_same_kills_are_caught",
    ),
    "6": (
        "test_keeper::test_a_thousand_restarts_with_a_valid_token_make_no_call",
        "test_crash::test_twenty_restarts_with_a_valid_token_make_no_call",
    ),
    "7": (
        "test_crash_loops::test_a_day_of_crashes_while_wechat_is_down_follows_the_persisted_backoff",
        "test_keeper::test_backoff_doubles_between_min_gap_and_max_backoff_and_survives_restarts",
        "test_crash::test_a_crash_loop_without_a_token_follows_the_persisted_backoff",
    ),
    "8": (
        "test_crash_loops::test_a_daemon_that_starts_again_and_again_on_an_unwritable_store_serves_and_makes_no_call",
        "test_crash_loops::test_daemons_that_die_after_their_disk_broke_share_one_emergency_budget",
        "test_disk::test_the_emergency_budget_holds_for_a_whole_day_of_a_broken_disk_and_over_restarts",
    ),
    "9": (
        "test_restart::test_a_call_under_way_is_awaited_and_its_answer_stored",
        "test_interruptions::test_an_answer_that_never_comes_is_awaited_no_longer_than_a_call_may_take",
        "test_keeper::test_stopping_wakes_watchers_and_stores_the_call_under_way",
    ),
    "10": (
        "test_interruptions::test_after_a_stop_that_outlasted_the_token_one_refresh_follows_and_the_dead_token_is_not_served",
        "test_interruptions::test_a_call_under_way_while_the_process_was_stopped_is_judged_by_its_own_deadline",
    ),
    "11": (
        "test_interruptions::test_a_bug_in_every_look_is_told_once_and_http_goes_on_answering",
        "test_registry::test_a_bug_in_one_apps_look_is_told_once_and_the_others_go_on",
        "test_registry::test_an_exception_in_a_look_does_not_end_the_looks",
        "test_keeper::test_a_bug_in_a_flight_is_told_once_and_backs_off",
        "test_api::test_probes_follow_the_state_and_never_call_wechat",
    ),
    "12": (
        "test_interruptions::test_the_caller_that_started_a_call_hangs_up_and_the_others_get_its_token",
        "test_keeper::test_a_caller_that_hangs_up_does_not_take_the_call_with_it",
    ),
    "13": ("test_commands::test_a_store_of_a_newer_version_ends_with_78_and_stays_untouched",),
    # B. A second daemon, other people's files
    "14": (
        "test_commands::test_a_second_daemon_on_the_same_store_ends_with_75_and_disturbs_nobody",
        "test_store::test_a_second_owner_is_refused_also_after_the_lock_file_was_deleted",
        "test_store::test_a_refused_second_owner_does_not_break_the_locks_of_the_first",
    ),
    "15": (
        "test_config::test_a_secret_file_that_others_may_open_is_refused_with_the_cure",
        "test_config::test_a_configuration_with_a_secret_in_it_is_a_secret_file",
        "test_config::test_a_link_into_a_directory_where_everybody_may_write_is_refused",
        "test_store::test_a_store_that_must_not_be_opened_is_left_untouched",
        "test_commands::test_a_socket_path_that_somebody_planted_is_refused",
    ),
    "16": ("test_place::test_a_store_on_a_network_file_system_is_refused",),
    # C. Disk and database
    "17": (
        "test_disk::test_a_full_disk_before_a_refresh_means_no_call_until_there_is_room",
        "test_disk::test_in_the_last_minutes_of_a_token_the_emergency_budget_pays_and_the_ledger_learns_of_it",
        "test_keeper::test_without_a_reservation_there_is_no_call_and_memory_goes_on_serving",
    ),
    "18": (
        "test_disk::test_a_full_disk_after_the_call_means_serving_from_memory_and_storing_later",
        "test_keeper::test_an_outcome_the_disk_does_not_take_is_served_and_stored_later_without_a_second_call",
    ),
    "19": (
        "test_disk::test_a_damaged_store_is_set_aside_and_its_successor_is_careful",
        "test_disk::test_a_store_whose_wal_is_gone_is_recognised_and_its_token_not_served",
        "test_disk::test_the_ledger_of_a_day_is_not_counted_twice_when_it_was_lost",
    ),
    "20": (
        "test_disk::test_damage_while_running_is_served_through_and_repaired",
        "test_disk::test_a_store_replaced_by_an_empty_one_while_running_takes_over_what_memory_holds",
    ),
    "21": (
        "test_disk::test_a_file_system_remounted_read_only_is_like_a_full_one",
        "test_store::test_the_event_loop_does_not_wait_for_a_locked_database",
    ),
    "22": ("test_store::test_a_restored_backup_begins_a_new_epoch",),
    # D. Clocks
    "23": (
        "test_store::test_a_wall_clock_that_jumps_while_running_changes_no_age",
        "test_store::test_after_a_reboot_with_the_wall_set_back_the_token_is_suspect_and_replaced_once",
        "test_store::test_in_a_boot_that_believes_in_1970_yesterdays_calls_still_age",
        "test_registry::test_a_wall_clock_that_was_set_back_does_not_stop_the_looks",
    ),
    "24": ("test_store::test_a_suspend_of_three_hours_ends_with_a_fresh_token_or_none",),
    "25": (
        "test_time_zones::test_daemons_of_all_time_zones_agree_on_one_store",
        "test_time_zones::test_a_leap_second_changes_no_age_and_causes_no_call",
        "test_quota::test_the_beijing_day_begins_at_16_utc_and_knows_no_summer_time",
    ),
    # E. WeChat answers
    "26": (
        "test_upstream_faults::test_with_a_token_it_goes_on_and_the_trouble_is_told",
        "test_upstream_faults::test_without_a_token_the_503_says_why_and_when_and_nothing_is_stored",
        "test_upstream_faults::test_one_call_is_spent_for_each_attempt_and_the_next_comes_after_the_pause_of_its_class",
        "test_upstream_faults::test_every_errcode_of_the_table_is_among_the_cases",
        "test_answer::test_every_errcode_has_its_class_and_is_an_answer",
        "test_keeper::test_each_class_of_errcode_has_its_pause",
    ),
    "27": (
        "test_upstream_faults::test_with_a_token_it_goes_on_and_the_trouble_is_told",
        "test_upstream_faults::test_without_a_token_the_503_says_why_and_when_and_nothing_is_stored",
        "test_fuzz::test_whatever_wechat_answers_is_one_of_our_outcomes_and_asked_for_once",
        "test_answer::test_no_bytes_make_the_parser_raise",
        "test_answer::test_what_is_no_answer_counts_as_a_lost_one",
    ),
    "28": (
        "test_upstream_faults::test_endless_answers_and_bombs_leave_its_memory_small",
        "test_fuzz::test_an_answer_that_never_ends_is_a_failure_too",
        "test_wechat::test_a_stream_without_end_is_cut",
        "test_wechat::test_a_compressed_answer_is_read_and_a_bomb_is_cut",
    ),
    "29": (
        "test_upstream_faults::test_one_call_is_spent_for_each_attempt_and_the_next_comes_after_the_pause_of_its_class",
        "test_wechat::test_silence_ends_at_the_total_deadline_and_is_a_lost_answer",
        "test_wechat::test_a_byte_at_a_time_ends_at_the_total_deadline",
    ),
    "30": (
        "test_upstream_faults::test_without_a_token_the_503_says_why_and_when_and_nothing_is_stored",
        "test_upstream_faults::test_an_expiry_that_can_be_read_is_taken_and_never_for_more_than_a_day",
        "test_answer::test_any_other_expiry_is_refused",
        "test_answer::test_tokens_that_are_no_tokens_are_refused",
        "test_answer::test_a_token_of_512_characters_is_fine",
    ),
    "31": (
        "test_outages::test_the_same_token_again_keeps_its_version_and_its_expiry_is_the_newer_answers",
        "test_keeper::test_the_same_token_again_keeps_its_version_and_takes_the_new_expiry",
    ),
    "32": (
        "test_upstream_faults::test_no_redirect_was_followed",
        "test_tls::test_an_expired_unsigned_or_misnamed_certificate_is_refused_before_the_secret_is_sent",
        "test_wechat::test_a_redirect_is_not_followed",
    ),
    "33": (
        "test_upstream_faults::test_one_call_is_spent_for_each_attempt_and_the_next_comes_after_the_pause_of_its_class",
        "test_upstream_faults::test_pauses_survive_a_crash",
        "test_wechat::test_retry_after_is_read_in_both_forms",
    ),
    "34": ("test_keeper::test_alternating_success_and_failure_keeps_min_gap",),
    "35": (
        "test_outages::test_an_outage_is_served_through_until_the_token_really_expires_then_503_then_one_call",
        "test_keeper::test_an_outage_of_three_hours_is_served_through_until_expiry_then_503_then_one_call",
    ),
    "36": (
        "test_outages::test_after_a_lost_answer_the_old_token_lives_on_and_a_new_one_comes_within_the_overlap",
        "test_wechat::test_a_server_that_mints_and_drops_sees_one_request_and_the_answer_is_lost",
        "test_keeper::test_a_lost_answer_makes_the_token_suspect_and_a_new_one_comes_within_the_overlap",
    ),
    "37": (
        "test_outages::test_somebody_else_who_calls_with_our_secret_is_suspected_at_the_third_time_and_seen_everywhere",
        "test_keeper::test_the_third_token_that_dies_before_its_time_means_a_second_issuer",
    ),
    "38": (
        "test_upstream_faults::test_a_quota_that_wechat_calls_spent_is_believed_and_our_own_count_shown_beside_it",
        "test_keeper::test_a_spent_quota_at_wechat_is_believed_until_the_next_beijing_day",
    ),
    # F. Crowds
    "39": (
        "test_crowds::test_ten_thousand_at_a_cold_start_cost_one_call_and_all_are_answered",
        "test_crowds::test_a_thousand_who_wait_hear_of_it_when_wechat_never_answers",
        "test_keeper::test_fifty_callers_at_a_cold_start_cause_one_call_and_all_get_its_token",
        "test_api::test_fifty_requests_at_a_cold_start_cause_one_call",
    ),
    "40": (
        "test_crowds::test_ten_thousand_reports_of_an_old_token_cost_nothing",
        "test_crowds::test_ten_thousand_reports_of_a_token_that_lives_ask_wechat_once",
        "test_crowds::test_ten_thousand_reports_of_a_token_that_is_dead_cost_one_call",
        "test_keeper::test_ten_thousand_reports_of_an_old_token_cost_nothing",
        "test_keeper::test_ten_thousand_reports_of_a_dead_token_cause_one_verification_and_one_refresh",
    ),
    "41": (
        "test_crowds::test_whoever_reports_every_new_version_at_once_spends_what_reports_may_and_no_more",
        "test_keeper::test_reports_spend_their_own_lane_and_the_schedule_goes_on",
        "test_keeper::test_a_false_report_costs_no_quota_and_is_throttled_when_repeated",
    ),
    "42": (
        "test_crowds::test_five_thousand_watchers_hear_of_a_rotation_once_each_and_leave_nothing_behind",
        "test_keeper::test_watchers_wake_on_the_next_version_only",
    ),
    "43": (
        "test_crowds::test_a_thousand_silent_or_dripping_peers_are_hung_up_on_and_others_are_served",
        "test_crowds::test_a_storm_of_connections_leaves_a_refresh_the_descriptors_it_needs",
        "test_crowds::test_a_daemon_without_descriptors_serves_whom_it_knows_and_recovers",
        "test_intruders::test_silent_peers_make_room_for_honest_ones",
        "test_intruders::test_a_dripping_peer_does_not_win_time_by_its_drops",
    ),
    # G. People with bad intent
    "44": (
        "test_api::test_every_route_but_probes_refuses_a_foreign_host",
        "test_api::test_browsers_and_proxies_get_no_token_but_may_see_the_status",
        "test_api::test_without_clients_a_program_shows_its_intent_by_a_header",
    ),
    "45": (
        "test_fuzz::test_a_broken_request_gets_no_token_and_no_server_error",
        "test_fuzz::test_any_bytes_are_4xx_or_the_end_unless_they_are_an_honest_request",
        "test_fuzz::test_a_request_in_a_request_of_doubtful_length_is_not_answered",
        "test_intruders::test_malformed_requests_are_400_and_closed_without_a_token",
        "test_intruders::test_a_smuggled_second_request_is_a_request_of_its_own",
        "test_api::test_paths_that_are_not_quite_ours_are_404_behind_the_gate",
    ),
    "46": (
        "test_api::test_with_clients_only_a_key_counts",
        "test_api::test_scopes_and_apps_are_kept_apart",
    ),
    "47": ("test_systemd::test_a_user_without_the_group_is_refused_by_the_kernel",),
    "48": (
        "test_systemd::test_a_port_that_is_taken_is_said_in_a_sentence_and_nothing_is_ready",
        "test_commands::test_a_taken_port_ends_with_1_and_a_sentence",
        "test_restart::test_requests_wait_while_nobody_runs_and_the_next_daemon_answers_them",
    ),
    # H. Clients over time
    "49": (
        "test_zoo::test_in_ordinary_operation_no_client_is_ever_refused",
        "test_zoo::test_without_the_promise_the_same_clients_are_refused",
        "test_zoo::test_whatever_happens_nobody_is_refused_but_for_a_reason",
        "test_lifetimes::test_over_two_refreshes_no_sdk_is_refused",
    ),
    "50": ("test_zoo::test_in_ordinary_operation_no_client_is_ever_refused",),
    "51": (
        "test_compat::test_who_asks_steadily_is_always_answered_and_costs_ever_fewer_verifications",
        "test_zoo::test_in_ordinary_operation_no_client_is_ever_refused",
    ),
    "52": (
        "test_zoo::test_a_fleet_that_starts_at_once_costs_one_call_and_nobody_waits_for_a_doubt",
        "test_lifetimes::test_a_fleet_behind_one_key_is_served_at_the_start_and_after_a_refresh",
    ),
    "53": ("test_compat::test_nobody_waits_long_for_a_verification_while_a_good_token_is_held",),
    "54": (
        "test_compat::test_who_asks_again_reports_and_a_dead_token_is_replaced_on_wechats_word",
        "test_sdks::test_the_next_call_after_somebody_killed_the_token_succeeds_with_one_refresh",
    ),
    "55": (
        "test_sdks::test_a_call_that_is_refused_though_the_token_lives_ends_in_an_error_and_costs_nothing",
        "test_sdks::test_a_token_that_stays_dead_ends_in_an_error_and_costs_no_more_than_reports_may",
        "test_compat::test_a_token_that_stays_dead_costs_no_more_than_reports_may",
        "test_proxy_daemon::test_a_token_that_stays_dead_for_one_interface_is_bounded_and_costs_no_token_call",
    ),
    "56": (
        "test_zoo::test_at_wecom_no_one_is_refused_at_a_renewal_and_nobody_waits_long",
        "test_lifetimes::test_a_companys_messages_arrive_across_a_renewal",
        "test_lifetimes::test_alertmanagers_alerts_arrive_across_a_renewal",
    ),
    "57": (
        "test_zoo::test_whatever_happens_nobody_is_refused_but_for_a_reason",
        "test_decision::test_a_promise_holds_though_a_later_plan_is_taken_back",
    ),
    "58": (
        "test_keeper::test_refreshes_in_a_loop_leave_the_schedule_its_share",
        "test_quota::test_people_and_reports_together_leave_the_schedule_its_share",
    ),
    # I. People with bad intent, second round
    "61": (
        "test_redirects::test_a_redirect_to_other_hosts_carries_no_token",
        "test_redirects::test_what_another_host_answers_is_no_refusal",
        "test_redirects::test_a_refusal_is_worth_one_more_try",
        "test_redirects::test_a_second_try_that_is_sent_elsewhere_takes_no_token_along",
    ),
    "70": (
        "test_keeper::test_after_a_pause_a_token_is_verified_before_it_is_called_fresh",
        "test_keeper::test_a_wall_clock_that_is_set_back_or_a_little_forward_costs_no_verification",
    ),
    "59": (
        "test_judged_anew::test_who_waits_for_the_next_version_is_told_at_the_reload",
        "test_judged_anew::test_a_name_that_is_ours_no_more_is_refused_to_who_waits",
        "test_judged_anew::test_who_waits_for_wechat_gets_nothing_that_was_revoked_meanwhile",
        "test_judged_anew::test_a_kept_answer_ends_with_the_rights",
    ),
    "60": (
        "test_api::test_a_body_that_is_not_what_its_headers_say_is_the_clients_fault",
        "test_compat::test_a_body_that_is_not_packed_as_it_says_is_malformed",
        "test_compat::test_a_body_that_is_too_large_is_refused_in_wechats_manner",
        "test_proxy_daemon::test_a_body_that_is_not_packed_as_it_says_is_the_services_fault_and_no_error_of_ours_in_the_log",
        "test_fairness::test_connections_that_owe_a_body_are_few_and_the_first_to_give_way",
    ),
    "62": (
        "test_proxy_masking::test_what_quotes_requests_resets_quotas_or_hands_out_tokens_is_refused",
        "test_proxy_masking::test_the_token_in_an_answer_is_masked_and_its_length_stays",
        "test_proxy_masking::test_the_previous_token_and_the_secret_are_masked_too",
    ),
    "63": (
        "test_crowds::test_one_client_that_holds_all_waits_shuts_out_neither_get_nor_the_watchdog",
        "test_fairness::test_a_client_that_waits_too_often_is_answered_early_and_another_waits_on",
        "test_proxy_limits::test_slow_calls_of_one_client_starve_nobody",
        "test_proxy_limits::test_one_app_never_takes_more_than_half_of_all",
    ),
    "64": (
        "test_text::test_whatever_comes_can_be_written_and_moves_no_cursor",
        "test_text::test_an_address_with_a_scope_is_none",
        "test_avatars_errors::test_half_an_emoji_in_a_nickname_spoils_no_page",
    ),
    "65": (
        "test_shared_pages::test_what_is_kept_is_bounded_in_bytes_whatever_is_asked_for",
        "test_handouts::test_memory_is_bounded_whatever_is_asked",
        "test_fast_path::test_the_cache_is_bounded",
    ),
    "73": (
        "test_live_accounts::test_whatever_changes_a_name_that_stays_never_stops_serving",
        "test_live_accounts::test_a_renamed_app_keeps_its_token_and_its_old_name_is_unknown",
        "test_live_reload::test_what_cannot_be_applied_is_named_and_the_rest_is_applied",
    ),
    "74": (
        "test_way_out::test_token_verification_ticket_proxied_calls_and_the_companion_go_through_the_proxy",
        "test_way_out::test_the_wrong_password_is_no_way_out_and_the_cure_works",
        "test_way_out::test_paths_are_appended_to_a_base_with_a_path",
        "test_way_out::test_without_the_ca_file_the_relay_is_not_trusted",
    ),
    "72": (
        "test_image::test_the_image_serves_without_rights_and_after_the_volumes_modes_were_widened",
        "test_environment::test_the_daemon_runs_without_a_file_in_a_read_only_root_as_a_user_without_a_name",
        "test_secret_files::test_a_secret_volume_of_kubernetes_is_accepted",
        "test_secret_files::test_a_file_that_an_engine_mounts_into_run_secrets_is_accepted",
    ),
    # The invariants: tests/harness/invariants.py checks I1 to I6 after every scenario of processes.
    "I1": (
        "test_kills::test_two_hundred_kills_at_random_moments_under_load_break_no_invariant",
        "test_kills::test_with_the_reservation_moved_behind_the_call_the_same_kills_are_caught",
    ),
    "I2": (
        "test_kills::test_two_hundred_kills_at_random_moments_under_load_break_no_invariant",
        "test_keeper::test_the_daily_quota_holds_whatever_asks",
    ),
    "I3": (
        "test_kills::test_two_hundred_kills_at_random_moments_under_load_break_no_invariant",
        "test_keeper::test_fifty_callers_at_a_cold_start_cause_one_call_and_all_get_its_token",
    ),
    "I4": ("test_kills::test_two_hundred_kills_at_random_moments_under_load_break_no_invariant",),
    "I5": (
        "test_kills::test_two_hundred_kills_at_random_moments_under_load_break_no_invariant",
        "test_outages::test_an_outage_is_served_through_until_the_token_really_expires_then_503_then_one_call",
    ),
    "I6": (
        "test_kills::test_two_hundred_kills_at_random_moments_under_load_break_no_invariant",
        "test_wechat::test_no_failure_carries_the_secret_or_the_url",
        "test_browser::test_no_page_holds_a_token",
    ),
    "I7": (
        "test_zoo::test_in_ordinary_operation_no_client_is_ever_refused",
        "test_zoo::test_whatever_happens_nobody_is_refused_but_for_a_reason",
        "test_decision::test_no_promise_outlives_the_schedules_own_call",
    ),
    "I8": ("test_zoo::test_in_ordinary_operation_no_client_is_ever_refused",),
    # J. Disk and files, second round
    "66": (
        "test_disk::test_a_start_serves_what_is_stored_and_writes_when_it_can",
        "test_disk::test_in_its_last_minutes_a_token_on_a_full_disk_costs_the_emergency_budget_only",
        "test_postgres_odd::test_a_database_that_is_away_at_the_start_is_taken_up_when_it_is_back",
        "test_shared_daemons::test_a_database_that_is_not_there_is_said_in_a_sentence_without_its_address",
    ),
    "67": (
        "test_lost_files::test_no_call_is_made_that_the_file_people_see_does_not_hold",
        "test_lost_files::test_no_second_daemon_starts_beside_the_first",
        "test_lost_files::test_where_a_second_daemon_has_the_file_the_first_makes_no_call",
    ),
    "68": (
        "test_place::test_a_file_of_another_user_is_refused",
        "test_place::test_a_directory_in_which_others_could_replace_the_store_is_refused",
        "test_place::test_another_programs_database_is_refused_and_left_as_it_is",
        "test_place::test_a_store_that_is_odd_inside_ends_in_a_sentence_that_check_says_too",
        "test_postgres_odd::test_a_database_that_is_odd_inside_ends_in_a_sentence_that_check_says_too",
    ),
    "69": (
        "test_anchor::test_a_volume_that_moves_to_a_running_host_brings_its_gap_and_its_quota",
        "test_anchor::test_calls_of_another_boot_are_placed_by_a_sane_wall_and_else_taken_for_new",
    ),
    "71": ("test_place::test_modes_that_a_platform_widened_are_put_right_at_each_start",),
    # L. People who agreed to show their avatar
    "75": (
        "test_consent_page::test_a_forged_state_changes_nothing",
        "test_consent_page::test_a_state_is_good_once",
        "test_consent_page::test_a_state_is_good_for_ten_minutes",
        "test_consent_page::test_a_state_is_good_in_its_own_browser_only",
        "test_consent_page::test_no_other_site_can_press_a_button",
    ),
    "76": (
        "test_consent_page::test_a_code_that_was_used_is_not_used_again",
        "test_consent_page::test_a_made_up_code_is_none",
        "test_consent_page::test_a_snapshot_user_is_told_how_to_leave_it_and_nothing_is_kept",
        "test_consent_page::test_somebody_elses_profile_is_not_kept",
        "test_consent_page::test_a_wechat_that_fails_is_said_and_nothing_is_kept",
    ),
    "77": (
        "test_consent_page::test_what_is_no_picture_of_wechats_host_is_not_kept",
        "test_consent_page::test_pictures_of_wechats_hosts_are_kept_and_more_hosts_can_be_named",
    ),
    "78": (
        "test_consent_events::test_a_wrong_signature_is_refused",
        "test_consent_events::test_an_old_timestamp_is_refused",
        "test_consent_events::test_xml_with_declarations_and_other_nonsense_is_refused",
        "test_consent_events::test_a_megabyte_is_refused_before_it_is_read",
        "test_consent_events::test_a_plain_message_is_refused_where_messages_are_encrypted",
        "test_consent_events::test_an_event_from_before_a_new_consent_does_not_end_it",
    ),
    "79": (
        "test_consent_page::test_on_a_full_disk_the_person_is_told_that_nothing_was_kept",
        "test_consent_events::test_an_event_whose_deletion_fails_is_not_answered_with_success",
    ),
    "80": ("test_consent_upkeep::test_who_follows_no_more_is_forgotten_within_a_day",),
    "81": (
        "test_consent_upkeep::test_a_flood_of_requests_is_refused_and_the_rest_is_unharmed",
        "test_consent_upkeep::test_a_flood_of_connections_leaves_the_companion_alone",
        "test_consent_upkeep::test_a_connection_that_says_nothing_is_ended",
    ),
}


@cache
def functions_of(file: str) -> frozenset[str]:
    """The names of a test file's functions, whichever room the file is in.

    There are none if there is no such file.
    """
    return frozenset(
        it.name
        for path in TESTS.rglob(f"{file}.py")
        for it in ast.parse(path.read_text()).body
        if isinstance(it, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def numbers() -> list[str]:
    """What SCENARIOS.md lists, in its order."""
    return re.findall(r"^- \*\*(I?\d+)\*\*", (TESTS / "SCENARIOS.md").read_text(), re.MULTILINE)


def test_every_scenario_has_a_test() -> None:
    listed = numbers()
    assert set(listed) == {*map(str, range(1, 82)), *(f"I{n}" for n in range(1, 9))}
    assert len(listed) == len(set(listed))
    assert {*TRIED} == set(listed)
    assert all(TRIED.values())


@pytest.mark.parametrize("name", sorted({name for names in TRIED.values() for name in names}))
def test_every_test_that_is_named_exists(name: str) -> None:
    file, _, test = name.partition("::")
    assert test.startswith("test_")
    assert test in functions_of(file), f"{name} is not there"
