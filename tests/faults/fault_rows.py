"""Tests of each row of the fault catalogue, promise of delivery and line of the security checklist.

The promises are in `docs/explanation/delivery.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_OWNERSHIP: Final = "worker/test_ownership.py::test_"
_WORKER: Final = "worker/test_worker.py::test_"
_STORM: Final = "faults/test_outbox_storm.py::test_"
_B: Final = "faults/test_loops_and_threads.py::test_"
_C: Final = "faults/test_network.py::test_"
_D: Final = "faults/test_order_and_identity.py::test_"
_F: Final = "faults/test_memory_and_input.py::test_"
_G: Final = "faults/test_security.py::test_"
_KILLERS: Final = "faults/test_killer_rows.py::test_"
_FULL_DISK: Final = "faults/test_full_disk.py::test_"
_UNSENT: Final = "faults/test_unsent_requests.py::test_"
_LEFTOVER: Final = "faults/test_leftover_bytes.py::test_"
_WORDS: Final = "faults/test_error_words.py::test_"
_RANDOM: Final = "faults/test_random_faults.py::test_"
_DELIVERY: Final = "delivery/test_delivery.py::test_"
_LIFE: Final = "client/test_lifecycle.py::test_"
_LOOP_ENDINGS: Final = "client/test_loop_endings.py::test_"
_REENTRANCY: Final = "client/test_signals_and_reentrancy.py::test_"
_CLOSE: Final = "client/test_close_and_callbacks.py::test_"
_IDENTITY: Final = "client/test_identity_methods.py::test_"
_POOL: Final = "http/test_transport.py::test_"
_SHAPE: Final = "test_architecture.py::test_"
_BUFFER: Final = "delivery/test_buffer.py::test_"
_CLOCK: Final = "delivery/test_wrong_clock.py::test_"
_OUTAGE: Final = "delivery/test_outages_and_clock.py::test_"
_BUILD: Final = "encoding/test_records.py::test_"
_IDS: Final = "runtime/test_ids.py::test_"
_OPTIONS: Final = "model/test_config.py::test_"
_REPLIES: Final = "encoding/test_responses.py::test_"
_RETRY: Final = "http/test_retry.py::test_"
_VALUES: Final = "encoding/test_validation.py::test_"
_SAFETY: Final = "emulator/test_access_control.py::test_"
_HOOKS: Final = "client/test_hooks.py::test_"
_CLIENTS: Final = "faults/test_emulator_clients.py::test_"
_HOSTILE: Final = "emulator/test_hostile_input.py::test_"
_DISKS: Final = "faults/test_spool_disks.py::test_"
_INTERRUPTED: Final = "faults/test_interruptions.py::test_"
_HARM: Final = "faults/test_spool_harm.py::test_"
_PRODUCER_WITH_REDIS: Final = "outbox/test_producer_with_redis.py::test_"
_PRODUCER: Final = "outbox/test_producer.py::test_"
_OBJECTS: Final = "faults/test_spool_foreign_objects.py::test_"

# Rows covered here. The other rows, on the spool and on dying processes, are covered by tests/spool.
CATALOGUE: Final = (
    "A10",
    *("B1", "B2", "B4", "B5", "B6", "B7", "B9", "B10", "B12", "B13"),
    *("C1", "C2", "C3", "C5", "C6", "C8", "C10", "C11", "C12", "C14", "C16", "C17", "C18"),
    *("D1", "D2", "D3", "D4", "D5", "D6", "D7", "D9", "D10", "D12"),
    *("F1", "F2", "F3", "F4", "F5", "F6", "F7", "F8", "F10", "F11", "F12"),
    *("G1", "G3", "G4", "G5", "G6"),
    # Hosts of a client: web servers, workers, notebooks, test clients.
    *("K1", "K2", "K3", "K4", "K5", "K6", "K7", "K8", "K9", "K10", "K11", "K12"),
    *("G1-exit", "G2", "G5-disk", "G7", "G8", "G9", "G10", "G11", "G12", "G13", "G14", "G15", "G17"),
    "G6-disk",
    *("G3-hooks", "G4-clock", "G16"),
    *("P1", "P2", "P3", "P4", "P5", "P6", "P7"),
    # Producers of an outbox.
    *("Q1", "Q2", "Q3", "Q4", "Q5", "Q6", "Q7", "Q8", "Q9", "Q10", "Q11"),
    # Workers of an outbox.
    *("W1", "W2", "W3", "W4", "W5", "W6", "W7", "W8", "W9", "W10", "W11"),
    *("S1", "S2", "S3", "S4", "S5", "S6", "S7", "S10", "S11", "S12", "S13", "S14"),
)

ROWS: Final[Mapping[str, tuple[str, ...]]] = {
    "A10": (
        f"{_LIFE}dropped_client_delivers_and_leaves_no_task",
        f"{_LIFE}dropped_client_without_pending_records_is_silent",
    ),
    "B1": (
        f"{_B}b1_flush_cancelled_at_any_of_200_steps_propagates_and_loses_nothing",
        f"{_LIFE}flush_cancelled_at_any_step_loses_nothing",
    ),
    "B2": (
        f"{_B}b2_randomly_cancelled_callers_leave_the_pool_usable",
        f"{_B}b2_1_000_randomly_cancelled_callers_leave_the_pool_usable",
        f"{_B}b2_exhausted_pool_recovers",
        f"{_POOL}cancelled_waiter_keeps_no_connection",
        f"{_POOL}interrupted_request_closes_only_its_own_connection",
    ),
    "B4": (
        f"{_LIFE}second_asyncio_run_delivers_records_of_the_first",
        "client/test_any_loop.py::test_call_from_another_running_loop",
        f"{_LIFE}client_moves_from_asyncio_to_trio",
        f"{_LOOP_ENDINGS}loop_that_ends_at_any_step_leaves_no_lease",
    ),
    "B5": (
        f"{_B}b5_tracking_threads_do_not_wait_for_a_blocked_loop",
        f"{_B}b5_160_000_calls_of_16_threads_during_a_blocked_loop",
    ),
    "B6": (
        f"{_B}b6_tracking_finalizer_corrupts_nothing",
        f"{_B}b6_drops_are_logged_once_in_20_seconds",
        f"{_REENTRANCY}tracking_in_a_signal_handler_keeps_the_counters_consistent",
        f"{_REENTRANCY}tracking_in_a_log_handler_does_not_recurse",
    ),
    "B7": (
        f"{_B}b7_callback_that_raises_1_000_times_stops_nothing",
        f"{_B}b7_blocking_callback_delays_neither_the_loop_nor_delivery",
        f"{_DELIVERY}callback_may_flush_and_close_without_deadlock",
        f"{_CLOSE}callback_that_raises_does_not_stop_delivery",
    ),
    "B9": (f"{_B}b9_event_about_each_request_causes_no_request_loop",),
    "B10": (
        f"{_B}b10_b12_client_works_in_other_runtimes",
        f"{_B}b10_unknown_event_loop_raises_and_loses_nothing",
    ),
    "B12": (f"{_B}b10_b12_client_works_in_other_runtimes",),
    "B13": (
        f"{_DELIVERY}last_event_is_sent_after_linger",
        f"{_B}b13_event_tracked_during_a_flush_is_sent_after_its_linger",
    ),
    "C1": (
        f"{_REPLIES}each_of_the_500_statuses_has_its_outcome",
        f"{_DELIVERY}temporary_failure_is_retried_until_delivery",
        f"{_DELIVERY}wrong_credentials_or_host_keep_records_and_pause_the_lane",
    ),
    "C2": (
        f"{_REPLIES}retry_after_accepts_each_form",
        f"{_REPLIES}invalid_retry_after_is_ignored_or_limited",
        f"{_RETRY}delay_is_never_shorter_than_retry_after",
    ),
    "C3": (
        f"{_C}c3_200_clients_do_not_reconnect_at_the_same_time",
        f"{_RETRY}delays_of_many_clients_are_distinct",
    ),
    "C5": (f"{_C}c5_backlog_drains_at_full_rate_after_ten_minutes_of_outage",),
    "C6": (
        f"{_C}c6_request_applied_without_response_counts_once_and_is_uncertain",
        f"{_DELIVERY}event_with_a_lost_response_is_counted_once",
    ),
    "C8": (f"{_C}c8_blocked_resolver_delays_neither_close_nor_exit",),
    "C10": (
        f"{_C}c10_200_awaited_calls_share_a_bounded_pool",
        f"{_POOL}concurrent_requests_share_a_bounded_number_of_connections",
        f"{_IDENTITY}concurrent_calls_share_a_bounded_pool",
    ),
    "C11": (
        f"{_DELIVERY}413_halves_batches_and_drops_only_the_huge_record",
        f"{_BUFFER}bisection_isolates_one_invalid_record_in_few_requests",
        f"{_BUFFER}repeated_413_never_leads_to_empty_requests",
    ),
    "C12": (
        f"{_C}c12_three_bad_rows_of_2_000_lose_three_in_one_request",
        f"{_REPLIES}three_failed_records_of_2_000_fail_alone",
    ),
    "C14": (
        f"{_DELIVERY}captive_portal_response_loses_no_record",
        f"{_DELIVERY}200_with_an_error_body_is_a_failure_and_the_invalid_record_is_isolated",
        f"{_REPLIES}status_200_with_an_unknown_body_is_retried",
    ),
    "C16": (
        f"{_C}c16_redirect_is_not_followed_and_leaks_nothing",
        f"{_DELIVERY}wrong_credentials_or_host_keep_records_and_pause_the_lane",
    ),
    "C17": (
        f"{_C}c17_backoff_of_one_lane_does_not_delay_another",
        f"{_DELIVERY}failing_lane_does_not_delay_another_lane",
    ),
    "C18": (f"{_C}c18_proxy_of_the_environment_is_used_and_its_password_is_never_shown",),
    "D1": (f"{_D}d1_counter_never_exceeds_the_calls_and_missing_updates_are_uncertain",),
    "D2": (f"{_D}d2_update_in_flight_when_the_process_is_killed_is_not_repeated",),
    "D3": (
        f"{_D}d3_last_of_500_updates_wins_despite_faults",
        f"{_D}d3_last_of_500_updates_wins_in_100_runs",
    ),
    "D4": (
        f"{_D}d4_timed_out_call_uses_all_attempts_and_reports_them",
        f"{_IDENTITY}retry_sends_the_same_payload",
        f"{_IDENTITY}retry_after_beyond_the_deadline_raises_at_once",
    ),
    "D5": (
        f"{_D}d5_rejected_merge_is_sent_once",
        f"{_IDENTITY}permanent_error_is_not_retried",
    ),
    "D6": (
        f"{_D}d6_every_method_uses_only_the_configured_host",
        f"{_DELIVERY}every_method_uses_the_configured_region",
    ),
    "D7": (
        f"{_D}d7_call_cancelled_at_any_step_leaves_the_client_usable",
        f"{_CLOSE}call_cancelled_during_backoff_sends_no_further_request",
    ),
    "D9": (
        f"{_OUTAGE}d9_events_too_old_for_track_are_dropped",
        f"{_OUTAGE}d9_events_too_old_for_track_go_to_import_with_credentials",
        f"{_CLOCK}d9_event_that_waited_six_days_is_dropped",
        f"{_CLOCK}clock_set_during_an_outage_drops_nothing",
        f"{_CLOCK}wrong_clock_after_a_restart_drops_nothing",
    ),
    "D10": (
        f"{_BUILD}invalid_time_is_rejected",
        f"{_BUILD}track_accepts_five_days_and_import_any_age",
    ),
    "D12": (
        f"{_CLOCK}d12_wrong_clock_is_corrected_and_reported_once",
        f"{_CLOCK}right_clock_is_not_changed",
        f"{_CLOCK}correction_does_not_change_events_that_wait",
    ),
    "F1": (
        f"{_F}f1_outage_keeps_memory_within_its_bound",
        f"{_F}f1_outage_with_a_spool_keeps_memory_small",
        f"{_F}f1_ten_minute_outage_at_5_000_events_a_second_in_memory",
        f"{_F}f1_ten_minute_outage_at_5_000_events_a_second_with_a_spool",
    ),
    "F2": (f"{_F}f2_slow_server_causes_few_tasks_and_sockets",),
    "F3": (
        f"{_F}f3_drops_are_counted_reported_and_logged_once",
        f"{_DELIVERY}wait_policy_raises_at_its_deadline_and_track_nowait_does_not_wait",
        f"{_DELIVERY}raise_policy_raises_and_accepts_no_record",
    ),
    "F4": (
        f"{_F}f4_property_with_millions_of_values_is_refused_without_visiting_all",
        f"{_F}f4_endless_containers_are_refused",
        f"{_F}f4_no_accepted_value_fails_a_batch",
        f"{_VALUES}unsupported_value_is_reported_with_its_path",
        f"{_VALUES}nesting_of_100_000_levels_raises_no_recursion_error",
        f"{_VALUES}hostile_object_is_rejected_and_not_shown",
    ),
    "F5": (f"{_F}f5_later_changes_of_arguments_are_not_sent",),
    "F6": (
        f"{_F}f6_validation_errors_show_the_size_and_not_the_payload",
        f"{_BUILD}record_of_999_999_bytes_is_accepted_and_one_byte_more_is_not",
        f"{_VALUES}nesting_is_limited_to_100_levels",
        f"{_VALUES}list_of_an_event_has_at_most_254_elements",
    ),
    "F7": (
        f"{_BUILD}invalid_insert_id_is_rejected",
        f"{_BUILD}placeholder_ids_are_rejected_in_any_case",
        f"{_IDS}million_ids_are_distinct",
        f"{_IDS}forked_child_never_repeats_ids_of_its_parent",
    ),
    "F8": (
        f"{_F}f8_no_request_exceeds_a_limit",
        f"{_F}f8_none_of_10_000_requests_exceeds_a_limit",
    ),
    "F10": (
        f"{_F}f10_100_flushes_return_during_tracking_and_closing",
        f"{_DELIVERY}concurrent_flushes_cover_all_earlier_records",
    ),
    "F11": (
        f"{_F}f11_calls_after_close_are_refused_and_the_result_adds_up",
        f"{_LIFE}repeated_and_concurrent_close_returns_the_same_result",
        f"{_LIFE}cancelled_close_can_be_called_again",
    ),
    "F12": (f"{_F}f12_close_with_a_dead_server_ends_and_keeps_spooled_records",),
    "G1": (
        f"{_G}g1_no_secret_leaks_for_any_server_response",
        f"{_G}g1_traceback_of_a_refused_call_contains_no_secret",
        f"{_G}g1_traceback_of_a_call_to_a_full_or_closed_client_contains_no_secret",
        f"{_G}g1_traceback_of_a_refused_option_contains_no_secret",
        f"{_G}g1_warning_of_an_unclosed_client_contains_no_secret",
        f"{_REPLIES}secret_across_the_length_limit_is_masked",
    ),
    "G2": (
        f"{_UNSENT}g2_request_that_fails_before_its_first_byte_is_not_applied",
        f"{_UNSENT}g2_request_of_a_users_client_that_fails_before_its_first_byte_is_not_applied",
        f"{_UNSENT}g2_client_that_is_closed_while_it_connects_has_sent_nothing",
        f"{_UNSENT}g2_event_loop_that_ends_while_it_connects_has_sent_nothing",
        f"{_UNSENT}g2_request_that_waits_for_a_connection_has_sent_nothing",
        f"{_UNSENT}g2_request_without_a_file_descriptor_has_sent_nothing",
    ),
    "G11": (
        f"{_LEFTOVER}g11_leftover_bytes_never_answer_a_request",
        f"{_LEFTOVER}g11_connection_without_leftover_bytes_is_used_again",
    ),
    "G17": tuple(
        f"{_WORDS}g17_{name}"
        for name in (
            "failure_of_a_peer_is_named",
            "failure_of_a_peer_is_named_with_a_users_client",
            "missing_file_descriptor_is_named",
            "reason_of_the_system_is_named",
            "name_that_cannot_be_resolved_is_named",
            "missing_package_is_named_with_the_variable",
            "module_that_cannot_be_imported_is_named",
            "time_limit_is_rounded",
            "text_of_a_users_client_shows_no_url",
        )
    ),
    "G3": (
        f"{_OPTIONS}invalid_host_is_rejected_without_repeating_it",
        f"{_OPTIONS}accepted_origin_contains_only_scheme_host_port_and_path",
    ),
    "G4": (f"{_G}g4_server_with_an_invalid_certificate_receives_nothing",),
    "G5": (
        f"{_HOSTILE}gzip_bomb_is_not_expanded_beyond_limit",
        f"{_HOSTILE}endless_body_is_not_kept_in_memory",
    ),
    "G6": (
        f"{_SAFETY}foreign_host_is_refused",
        f"{_SAFETY}control_api_refuses_foreign_origin",
        f"{_SAFETY}every_response_has_security_headers_and_no_cors",
        "emulator/test_server.py::test_non_loopback_address_requires_allow_remote",
    ),
    "G3-hooks": (
        f"{_HOOKS}before_send",
        f"{_HOOKS}before_send_that_removes_a_field_of_events_drops_them",
        f"{_HOOKS}before_send_that_changes_a_field_sends_nothing_that_mixpanel_ignores",
    ),
    "G4-clock": (
        f"{_CLOCK}d12_wrong_clock_is_corrected_and_reported_once",
        f"{_CLOCK}right_clock_is_not_changed",
        f"{_CLOCK}wrong_clock_is_not_corrected_by_useless_dates",
        f"{_CLOCK}correction_of_any_size_survives_useless_answers_or_ends",
        f"{_CLOCK}clock_set_during_an_outage_drops_nothing",
        f"{_CLOCK}wrong_clock_does_not_change_the_wait_for_a_date",
    ),
    "G16": (
        f"{_CLIENTS}others_are_answered_and_memory_is_bounded",
        f"{_CLIENTS}refused_body_is_answered_before_it_ends",
        f"{_CLIENTS}client_that_does_not_read_is_disconnected",
        f"{_CLIENTS}connections_above_the_maximum_close_idle_ones",
    ),
    "G7": (
        f"{_FULL_DISK}g7_records_are_accepted_again_soon_after_a_full_disk_has_room",
        f"{_FULL_DISK}g7_waiting_caller_gets_the_room_of_a_full_disk",
        f"{_FULL_DISK}g7_start_on_a_full_disk_names_it_and_records_follow_once_there_is_room",
    ),
    "G13": (
        f"{_KILLERS}g13_record_that_ends_the_process_is_set_aside_and_the_others_arrive",
        f"{_KILLERS}g13_kills_of_a_healthy_process_set_no_record_aside",
        f"{_KILLERS}g13_request_that_ends_acquits_its_records",
        f"{_KILLERS}g13_request_that_takes_long_acquits_its_records",
    ),
    "G8": ("faults/test_locked_spool.py::test_g8_only_committed_records_are_said_to_wait_in_a_locked_spool",),
    "G5-disk": (
        f"{_DISKS}g5_full_disk_of_any_block_size_does_not_kill_the_process",
        f"{_DISKS}g5_disks_where_shared_memory_can_fail_are_detected",
    ),
    "G6-disk": (f"{_HARM}g6_nothing_accepted_after_harm_to_an_open_spool_is_lost_by_a_kill",),
    "G9": (
        f"{_OBJECTS}g9_foreign_objects_in_a_spool_change_and_lose_no_record",
        f"{_OBJECTS}g9_foreign_tables_and_views_stay_in_the_spool",
    ),
    # A hook drops a profile update, or raises.
    "K1": ("client/test_hooks.py::test_before_send",),
    # Async views with an event loop for each request, in several threads.
    "K2": (
        "hosts/test_flask.py::test_requests_from_six_threads",
        "hosts/test_flask.py::test_async_views_while_mixpanel_does_not_respond",
    ),
    # An ASGI app without a lifespan, at SIGTERM.
    "K3": (
        "integrations/test_asgi_servers.py::test_termination_signal_delivers_events_of_any_asgi_app",
        "integrations/test_asgi_servers.py::test_termination_signal_delivers_events_of_sync_and_async_django_views",
        "integrations/test_asgi_servers.py::test_termination_signal_delivers_events_of_the_asgi_app_of_django",
    ),
    # Plain views with `track_nowait` and a client that no event loop runs.
    "K4": (
        "hosts/test_plain_views.py::test_client_that_nothing_runs_is_reported_and_delivers_at_exit",
        "client/test_any_loop.py::test_warning_if_no_loop_runs_the_client",
    ),
    # `asyncio.run` for each call, without a flush.
    "K5": (
        "client/test_any_loop.py::test_loop_delivers_before_it_ends",
        "client/test_any_loop.py::test_four_threads_with_a_loop_per_call_lose_nothing",
        "integrations/test_aws_lambda.py::test_all_is_delivered_when_an_invocation_returns",
    ),
    # Celery.
    "K6": ("integrations/test_celery.py::test_worker_delivers_before_it_ends",),
    # A second running event loop, such as that of a test client.
    "K7": (
        "hosts/test_test_clients.py::test_test_client_that_blocks_an_async_test",
        "client/test_any_loop.py::test_call_from_another_running_loop",
        "client/test_any_loop.py::test_call_while_the_loop_of_the_client_is_blocked",
    ),
    # A client in a background thread, and a program that raises.
    "K8": ("client/test_blocking.py::test_program_ends_and_has_delivered",),
    # A notebook cell that makes a client is run again.
    "K9": ("hosts/test_notebooks.py::test_cell_that_makes_a_client_is_run_again",),
    # A function of the app returns a numeric id.
    "K10": ("integrations/test_never_fails.py::test_every_result_of_user_id_keeps_the_page",),
    # Mixpanel hangs during `sign_in`.
    "K11": ("integrations/test_app_servers.py::test_sign_up_does_not_wait_for_a_mixpanel_that_hangs",),
    # Proxy and certificate variables that cannot be used.
    "K12": ("http/test_environment.py::test_wrong_variable_is_named_and_keeps_the_records",),
    "G1-exit": (
        "faults/test_process_exit.py::test_process_exits_as_without_a_client",
        "faults/test_process_exit.py::test_process_exits_as_without_a_client_for_all_ways",
        "client/test_any_loop.py::test_process_ends_and_has_delivered",
    ),
    "G10": (
        "faults/test_context.py::test_first_call_keeps_no_context",
        "faults/test_context.py::test_first_call_from_another_loop_keeps_no_context",
        "faults/test_context.py::test_first_call_of_a_blocking_client_keeps_no_context",
        "faults/test_context.py::test_callbacks_run_in_an_empty_context",
    ),
    "G12": (
        "faults/test_feedback.py::test_callback_that_feeds_back_is_called_at_a_bounded_rate",
        "faults/test_feedback.py::test_callback_that_does_not_track_is_not_slowed_down",
        "faults/test_feedback.py::test_deliveries_of_other_records_do_not_pile_up",
        "faults/test_feedback.py::test_log_handler_that_tracks_causes_no_loop",
    ),
    "G14": (
        f"{_INTERRUPTED}interrupted_call_leaves_right_sums",
        f"{_INTERRUPTED}client_works_after_its_first_call_was_interrupted",
        f"{_INTERRUPTED}time_limits_of_a_worker_reach_it_and_lose_nothing",
    ),
    "G15": ("faults/test_memory_limit.py::test_value_that_is_too_large_for_the_memory_is_refused",),
    # A fixture in `conftest.py` also checks conservation after each test of the suite.
    "P1": (f"{_RANDOM}accepted_records_arrive_once_for_200_seeds",),
    "P2": (
        f"{_RANDOM}accepted_records_arrive_once_despite_random_faults",
        f"{_BUILD}record_contains_the_deduplication_key",
    ),
    "P3": (f"{_F}f1_outage_keeps_memory_within_its_bound", f"{_F}f2_slow_server_causes_few_tasks_and_sockets"),
    "P4": (
        f"{_F}f12_close_with_a_dead_server_ends_and_keeps_spooled_records",
        f"{_IDENTITY}deadline_ends_a_call_without_response",
    ),
    "P5": (f"{_B}b5_tracking_threads_do_not_wait_for_a_blocked_loop",),
    "P6": (f"{_G}g1_no_secret_leaks_for_any_server_response",),
    "P7": (f"{_D}d2_update_in_flight_when_the_process_is_killed_is_not_repeated",),
    # Outbox away, full, slow.
    "Q1": (
        f"{_PRODUCER}overflow_policy_applies_while_the_engine_takes_nothing",
        f"{_PRODUCER}engine_that_is_away_at_the_start_is_tried_again",
        f"{_PRODUCER}full_outbox_takes_what_fits_and_the_rest_later",
        f"{_PRODUCER}engine_that_does_not_answer_is_left_after_timeout",
    ),
    # Lost answer of an outbox.
    "Q2": (
        f"{_PRODUCER}failed_put_is_repeated_and_no_update_is_stored_twice",
        f"{_PRODUCER}lost_answer_stores_events_again_with_the_same_insert_id",
        f"{_PRODUCER}sender_that_is_cancelled_during_a_put_repeats_it",
        f"{_PRODUCER}random_faults_neither_lose_nor_repeat_a_record",
    ),
    # Outbox that refuses.
    "Q3": (
        f"{_PRODUCER}refusing_engine_keeps_the_records_and_is_reported",
        f"{_PRODUCER}configuration_error_of_the_engine_is_raised_at_the_start",
        f"{_PRODUCER}configuration_error_at_the_first_put_keeps_the_records",
    ),
    # Close while the outbox does not answer.
    "Q4": (
        f"{_PRODUCER}aclose_ends_by_its_deadline_and_reports_what_may_be_stored",
        f"{_PRODUCER}unanswered_update_is_uncertain_and_an_answered_one_is_dropped",
    ),
    # Event loop that ends, and fork.
    "Q5": (
        f"{_PRODUCER}event_loop_that_ends_at_any_step_repeats_no_update",
        f"{_PRODUCER}event_loop_that_ends_during_a_put_repeats_it_in_the_next",
        f"{_PRODUCER}forked_child_is_another_producer",
    ),
    # Spool below an outbox.
    "Q6": (
        f"{_PRODUCER}spool_keeps_what_the_outbox_does_not_take",
        f"{_PRODUCER}unanswered_update_in_a_spool_is_not_handed_over_by_the_next_process",
    ),
    # Confirmed calls.
    "Q7": (
        f"{_PRODUCER}confirmed_call_returns_when_the_engine_has_the_record",
        f"{_PRODUCER}confirmed_call_raises_after_timeout_and_the_record_stays_queued",
        f"{_PRODUCER}confirmed_call_raises_if_its_record_is_lost",
        f"{_PRODUCER}closing_ends_confirmed_calls",
        f"{_PRODUCER}cancelled_confirmed_call_leaves_its_record_queued",
    ),
    # Producer killed.
    "Q9": (f"{_PRODUCER_WITH_REDIS}killed_producer_loses_nothing_that_was_confirmed",),
    # Redis killed, stopped, or away with a spool below.
    "Q10": (
        f"{_PRODUCER_WITH_REDIS}killed_server_loses_nothing_and_stores_no_update_twice",
        f"{_PRODUCER_WITH_REDIS}stopped_server_stores_no_update_twice",
        f"{_PRODUCER_WITH_REDIS}spool_below_an_outbox_survives_an_outage_and_a_restart",
    ),
    # Redis read-only, full, evicting, or with another password.
    "Q11": (
        f"{_PRODUCER_WITH_REDIS}read_only_and_full_servers_delay_records",
        f"{_PRODUCER_WITH_REDIS}wrong_password_keeps_records_and_is_reported",
        f"{_PRODUCER_WITH_REDIS}evicting_server_is_refused_at_the_start",
    ),
    # Order of identity calls.
    "Q8": (f"{_PRODUCER}deferred_identity_calls_are_handed_over_in_order_after_earlier_events",),
    "S1": (f"{_OPTIONS}secret_is_never_shown", f"{_LIFE}client_cannot_be_pickled_and_its_repr_has_no_secret"),
    "S2": (
        f"{_G}g1_traceback_of_a_refused_call_contains_no_secret",
        f"{_IDENTITY}errors_mask_credentials_that_the_server_repeats",
    ),
    "S3": (f"{_LIFE}outage_is_logged_once_per_episode", f"{_G}g1_no_secret_leaks_for_any_server_response"),
    "S4": (f"{_G}g4_server_with_an_invalid_certificate_receives_nothing",),
    "S5": (
        f"{_G}s5_cookies_are_not_kept_and_netrc_is_not_read",
        f"{_C}c16_redirect_is_not_followed_and_leaks_nothing",
    ),
    "S6": (f"{_OPTIONS}invalid_host_is_rejected_without_repeating_it", f"{_OPTIONS}regions_are_constants"),
    "S7": (f"{_OPTIONS}invalid_token_is_rejected", f"{_OPTIONS}invalid_secret_is_rejected"),
    "S10": (f"{_G}s10_endless_response_is_bounded_in_size_and_time",),
    "S11": (f"{_SAFETY}foreign_host_is_refused", f"{_HOSTILE}gzip_bomb_is_not_expanded_beyond_limit"),
    "S12": (f"{_F}f4_property_with_millions_of_values_is_refused_without_visiting_all",),
    "S13": (f"{_SHAPE}importing_does_nothing", f"{_G}s13_running_client_registers_no_process_hooks"),
    "S14": (f"{_G}g1_no_secret_leaks_for_any_server_response",),
    # Worker killed.
    "W1": (
        f"{_STORM}killed_workers_lose_nothing_and_repeat_no_add",
        f"{_STORM}killed_workers_lose_nothing_in_three_minutes",
        f"{_OWNERSHIP}update_that_a_dead_worker_had_begun_is_uncertain",
        f"{_OWNERSHIP}repeated_updates_of_a_lane_share_a_request_as_before",
    ),
    # Worker stopped for longer than its lease, or cut off from the outbox.
    "W2": (
        f"{_STORM}worker_that_was_stopped_beyond_its_lease_repeats_no_add",
        f"{_OWNERSHIP}worker_that_was_stopped_for_longer_than_its_lease_sends_nothing_that_others_took",
        f"{_OWNERSHIP}worker_begins_no_request_without_a_heartbeat_for_12_seconds",
    ),
    # Redis killed, read-only, full.
    "W3": (f"{_STORM}killed_redis_loses_nothing_that_it_confirmed",),
    "W4": (f"{_STORM}read_only_redis_delays_everything_and_loses_nothing",),
    "W5": (f"{_STORM}full_redis_is_drained_by_the_workers",),
    # Outbox away: at the start, for settlements, for marks.
    "W6": (
        f"{_OWNERSHIP}worker_waits_for_an_outbox_that_is_away_at_the_start",
        f"{_OWNERSHIP}settlement_waits_for_the_outbox",
        f"{_OWNERSHIP}mark_that_cannot_be_written_delays_the_request",
    ),
    # Poison, spoiled bodies, newer entries, erased persons.
    "W7": (
        f"{_OWNERSHIP}entry_whose_workers_died_becomes_a_dead_letter",
        f"{_OWNERSHIP}spoiled_body_becomes_a_dead_letter",
        f"{_OWNERSHIP}newer_entries_are_reported_once",
        f"{_OWNERSHIP}records_of_erased_persons_are_purged",
    ),
    # A 429 for one worker.
    "W8": (f"{_OWNERSHIP}retry_after_holds_for_all_workers",),
    # A worker comes or goes: its lanes move, its entries are given back.
    "W9": (
        f"{_OWNERSHIP}lane_moves_to_a_new_worker_once_nothing_of_it_is_in_flight",
        f"{_WORKER}stopped_worker_gives_its_entries_back_at_once",
        f"{_WORKER}request_that_outlasts_the_shutdown_timeout_leaves_its_entry_to_another_worker",
        f"{_WORKER}cancelled_run_hands_over",
    ),
    # Mixpanel down, too large, rejecting.
    "W10": (
        f"{_WORKER}worker_holds_few_entries_while_mixpanel_is_down",
        f"{_WORKER}413_splits_the_batch_and_ends_the_entries_once",
        f"{_WORKER}rejected_records_become_dead_letters_without_the_token",
        f"{_OWNERSHIP}update_with_an_unknown_outcome_is_uncertain_and_not_sent_again",
    ),
    # Password in the URL.
    "W11": ("cli/test_worker_command.py::test_outbox_that_cannot_be_reached_is_named_without_its_password",),
}
