//! One suite for every store: what the trait promises, checked from the outside.
//!
//! `store_suite!(name, make)` makes one test of each function below for the store that `make().await` gives. A new
//! store joins with one line; no test may be skipped.

pub(crate) mod agents;
pub(crate) mod breakers;
pub(crate) mod commands;
pub(crate) mod dependencies;
pub(crate) mod dossiers;
pub(crate) mod lifecycle;
pub(crate) mod limits;
pub(crate) mod nodes;
pub(crate) mod order;
pub(crate) mod queues;
pub(crate) mod reads;
pub(crate) mod settled;
pub(crate) mod turns;
pub(crate) mod volatile;
pub(crate) mod widths;
pub(crate) mod world;

pub(crate) use world::World;

macro_rules! store_suite {
    ($name:ident, $make:expr) => {
        mod $name {
            crate::conformance::store_tests! { $make;
                order: a_claim_takes_priority_then_deadline_then_age,
                    a_claim_takes_no_more_than_its_slots,
                    future_tasks_wait_for_their_time,
                    a_claim_needs_every_required_capability_and_the_handler,
                    a_claim_may_name_the_queues_that_it_takes_from,
                    of_one_key_only_one_runs_and_the_best_goes_first,
                    keys_of_different_namespaces_do_not_meet,
                    a_paused_task_is_not_claimed_until_resumed,
                    run_now_makes_a_future_task_ready,
                    a_changed_priority_changes_the_order,
                    many_rows_of_a_busy_key_hide_nobody;
                queues: a_queue_runs_no_more_than_its_width_on_all_nodes_together,
                    a_slot_of_a_queue_is_held_by_a_lease_and_by_nothing_else,
                    a_paused_queue_starts_nothing_and_then_the_best_first,
                    what_runs_goes_on_while_its_queue_is_paused,
                    a_manual_queue_starts_what_was_there_when_it_was_asked_to,
                    a_rate_lets_its_burst_start_and_then_so_many_in_a_time,
                    a_closed_queue_hides_nobody,
                    the_width_of_a_queue_and_its_keys_hold_together,
                    a_parked_claim_hears_that_its_queue_opened,
                    settings_come_back_as_they_were_put,
                    a_queue_is_deleted_once_it_is_empty,
                    queues_of_different_namespaces_do_not_meet,
                    a_command_that_does_not_fit_is_refused,
                    settings_and_pauses_are_carried_into_a_copy;
                turns: who_has_waited_for_long_starts_as_if_it_were_more_urgent,
                    a_stream_of_urgent_tasks_starves_nobody_where_tasks_age,
                    tasks_of_every_kind_rise_from_when_they_were_ready,
                    a_task_that_has_risen_gets_the_turn_of_its_key,
                    a_changed_ageing_moves_those_who_wait,
                    a_changed_priority_counts_from_there,
                    ageing_goes_on_in_a_copy,
                    in_a_fair_queue_every_key_starts_within_the_first_round,
                    a_key_that_was_served_goes_behind_what_is_ready,
                    in_a_fair_queue_priorities_and_deadlines_go_first,
                    a_turn_is_kept_when_another_task_of_the_key_comes_or_goes,
                    keys_take_turns_in_fair_queues_only,
                    a_changed_fairness_moves_those_who_wait,
                    fair_queues_age_too;
                widths: of_a_key_as_many_run_as_its_queue_lets,
                    a_task_of_a_narrow_queue_waits_for_its_key_and_nobody_passes_it_by,
                    whoever_has_a_turn_may_start_first,
                    a_changed_width_counts_at_once,
                    a_turn_is_given_up_by_whoever_cannot_start,
                    turns_follow_from_leases,
                    the_best_tasks_of_a_key_have_its_turns,
                    wide_keys_of_a_fair_queue_take_turns,
                    a_queue_bounds_its_keys_and_itself,
                    keys_are_as_wide_in_a_copy;
                limits: a_start_takes_as_many_tokens_as_its_task_has_units,
                    each_attempt_takes_the_units_again,
                    a_task_of_more_units_than_the_burst_waits_for_a_full_bucket_and_overdraws_it,
                    a_more_urgent_task_of_few_units_goes_before_one_that_waits_for_many,
                    units_and_width_hold_together,
                    a_task_that_is_not_to_wait_is_refused_at_the_width,
                    a_task_that_is_not_to_wait_is_refused_without_tokens,
                    a_queue_takes_no_more_than_its_depth,
                    what_was_accepted_once_is_answered_again_by_a_full_queue,
                    a_queue_that_drops_takes_the_newest,
                    what_is_dropped_lets_go_of_all_that_it_held,
                    a_queue_that_is_behind_takes_nothing_until_it_has_caught_up,
                    what_is_replaced_neither_refuses_nor_is_dropped_for_its_successor,
                    what_waits_too_long_is_dropped_by_the_reaper,
                    nobody_waits_behind_the_units_of_a_task_whose_time_has_passed,
                    what_a_handler_spawns_is_refused_like_a_submission,
                    what_handlers_spawn_that_end_together_is_judged_one_after_the_other,
                    limits_that_are_put_or_taken_away_hold_at_once;
                agents: an_agent_is_listed_as_it_registered,
                    an_agent_is_idle_busy_or_offline_by_its_leases_and_by_when_it_was_heard,
                    an_agent_takes_what_it_is_capable_of,
                    an_agent_never_holds_more_tasks_than_it_runs_at_once,
                    resources_are_never_given_out_twice,
                    a_task_is_kept_for_the_agent_that_it_prefers_while_that_one_lives,
                    a_preference_falls_back_on_others_when_the_agent_cannot,
                    what_an_answer_lost_is_answered_again_before_anything_new,
                    a_newer_session_fences_the_older_one,
                    a_closed_session_gives_back_what_it_held,
                    a_removed_agent_loses_what_it_held,
                    a_task_whose_agent_fell_silent_runs_elsewhere,
                    a_cancel_reaches_an_agent_with_its_renewal,
                    queues_and_keys_hold_for_agents_too,
                    a_parked_agent_is_woken_by_what_it_can_do,
                    agents_are_carried_into_a_copy_without_their_sessions,
                    an_unknown_agent_is_refused_everything;
                breakers: failures_open_a_breaker_on_all_nodes_and_others_go_on,
                    a_half_open_breaker_lets_its_probes_try_and_closes_when_they_succeed,
                    a_probe_that_fails_opens_the_breaker_again,
                    deaths_and_cancels_open_no_breaker,
                    a_breaker_of_an_agent_holds_up_that_agent_alone,
                    people_open_close_change_and_remove_breakers,
                    breakers_of_different_namespaces_do_not_meet,
                    a_parked_claim_hears_that_a_breaker_lets_it_try,
                    breakers_are_carried_into_a_copy;
                lifecycle: a_task_completes_with_its_result,
                    a_failure_is_retried_with_backoff_and_then_dead_lettered,
                    a_non_retryable_failure_ends_at_once,
                    the_handlers_own_delay_beats_the_policy,
                    a_stale_lease_writes_nothing,
                    an_expired_lease_goes_back_without_a_failure,
                    a_renewed_lease_does_not_expire,
                    again_keeps_the_attempt_and_the_checkpoint,
                    a_released_task_spends_no_attempt,
                    a_wait_for_a_signal_ends_when_it_comes,
                    a_signal_that_came_before_the_wait_is_not_lost,
                    a_wait_for_a_time_ends_by_the_reaper,
                    a_parent_waits_for_the_children_it_spawned,
                    a_finish_without_children_to_wait_for_goes_on_at_once,
                    steps_and_checkpoints_are_fenced_and_kept,
                    consumed_signals_go_with_the_checkpoint,
                    an_expired_task_is_cancelled_and_a_started_one_is_not,
                    a_queue_timeout_fails_the_task,
                    what_is_overdue_is_not_started_even_before_the_reaper_comes,
                    progress_and_logs_are_kept_in_order,
                    yielding_on_a_pause_request_keeps_the_checkpoint,
                    a_stopped_process_keeps_its_lease_while_paused;
                commands: cancel_of_a_queued_task_ends_it,
                    cancel_of_a_running_task_asks_its_holder,
                    cancel_beats_a_later_failure,
                    a_cancel_while_backing_off_ends_it,
                    ended_tasks_refuse_what_makes_no_sense,
                    retry_revives_a_failed_task_with_all_its_retries,
                    retry_of_a_backing_off_task_makes_it_due,
                    unknown_tasks_are_not_found_by_any_command,
                    delete_removes_everything_but_refuses_the_running,
                    unique_keys_keep_replace_and_reject,
                    a_unique_key_is_free_after_the_end_unless_it_has_a_time_to_live,
                    a_retry_takes_its_unique_key_again_or_is_refused,
                    unique_duplicates_within_a_batch_stand_for_one_task,
                    an_idempotency_key_answers_the_same_and_refuses_another_request,
                    an_idempotent_command_happens_once,
                    an_update_changes_what_it_may_and_refuses_the_rest,
                    a_failed_task_is_retried_with_other_parameters,
                    an_update_of_a_stale_version_is_refused,
                    a_full_inbox_refuses_signals;
                dependencies: a_dependant_waits_for_all_its_dependencies,
                    a_failed_dependency_cancels_ignores_or_runs_by_policy,
                    a_cancel_cascades_down_a_long_chain,
                    dependencies_on_ended_tasks_count_at_once,
                    a_batch_may_name_items_forwards_and_refuses_cycles,
                    items_that_wait_for_each_other_through_a_shared_unique_key_are_refused,
                    a_dependency_on_an_item_that_is_not_there_is_refused,
                    an_unknown_dependency_refuses_the_whole_batch,
                    a_retried_dependant_waits_again_for_a_retried_dependency,
                    whoever_still_waits_waits_again_for_a_retried_dependency,
                    a_dependency_with_unfinished_dependants_is_neither_deleted_nor_pruned,
                    a_thousand_dependants_are_released_together;
                nodes: a_node_is_listed_from_its_first_beat_until_it_leaves,
                    a_silent_node_is_lost_until_it_says_something,
                    two_incarnations_of_one_name_are_two_nodes,
                    a_fresh_task_of_a_dead_node_is_suspected_and_runs_alone,
                    a_task_that_survived_its_start_is_not_suspected_of_its_nodes_death,
                    a_task_that_was_alone_when_its_node_died_thrice_fails,
                    a_lease_that_ran_out_on_a_living_node_is_no_crash,
                    a_command_for_a_held_task_is_counted_for_its_holder_alone;
                volatile: a_task_that_is_not_durable_says_so_to_its_end,
                    a_task_ends_with_the_process_that_accepted_it,
                    a_process_that_is_silent_or_was_never_heard_has_ended,
                    nothing_ends_while_its_process_lives,
                    whoever_ran_it_has_lost_its_lease,
                    what_it_held_up_goes_on,
                    a_revived_task_lives_with_the_process_that_revived_it,
                    a_pass_cancels_no_more_than_its_limit,
                    durable_tasks_of_the_same_batch_stay,
                    a_copy_carries_it_and_cancels_it;
                reads: a_list_pages_from_the_newest_to_the_oldest,
                    every_filter_selects_what_it_says,
                    statuses_follow_the_columns_and_the_clock,
                    counts_equal_a_listing,
                    executions_tell_every_attempt,
                    events_tell_the_history_in_order,
                    namespaces_do_not_see_each_other,
                    a_foreign_id_with_a_known_row_finds_nothing,
                    prune_respects_the_retention,
                    the_key_holder_is_the_running_task,
                    a_closed_store_says_so;
                dossiers: a_copy_equals_its_original,
                    a_copy_goes_on_like_its_original,
                    a_copy_goes_on_counting_where_its_original_stopped,
                    what_a_copy_waits_for_still_comes,
                    unique_keys_are_held_in_a_copy_as_before,
                    idempotency_keys_answer_in_a_copy_as_before,
                    a_store_with_running_tasks_is_not_exported,
                    only_an_empty_store_takes_a_copy,
                    a_page_that_does_not_follow_the_last_one_changes_nothing,
                    pages_of_an_export_are_bounded_in_number_and_weight;
            }
        }
    };
}

macro_rules! store_tests {
    ($make:expr; $($module:ident: $($test:ident),+;)+) => {
        $($(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let world = crate::conformance::World::with(|| Box::pin($make)).await;
                crate::conformance::$module::$test(&world).await;
                world.verify().await;
            }
        )+)+
    };
}
pub(crate) use {store_suite, store_tests};
