"""What was seen to break on a real cluster, row by row, and the tests that hold each.

`make test-cluster` runs them all. Here it is checked that no row is without one and that every test
that is named exists.
"""

from __future__ import annotations

import ast

import pytest

from tests.manifests.rendering import ROOT

SETUP, FAILURES, ROLLOUT = (
    "deploy/test_setup.py",
    "deploy/test_failures.py",
    "deploy/test_rollout.py",
)
SERVER, POLICY = "deploy/test_any_server.py", "manifests/test_policy.py"
ANY_SETUP, ANY_FAILURE = "deploy/test_any_setup.py", "deploy/test_any_failure.py"
WORDS = "deploy/test_spellings.py"

ROWS: dict[str, dict[str, list[str]]] = {
    "1 setup.sh as a project's administrator": {
        SETUP: [
            "test_a_projects_administrator_needs_no_right_to_the_namespace",
            "test_a_missing_prerequisite_is_named_with_its_remedy",
        ],
        ANY_SETUP: [
            "test_setup_plans_runs_repeats_and_uninstalls",
            "test_setup_without_rights_names_them_and_applies_nothing",
        ],
    },
    "2 KServe's webhook refuses a metric without `value`": {
        SERVER: [
            "test_kserves_webhook_refuses_a_metric_without_a_value",
            "test_a_second_apply_by_the_client_changes_nothing",
        ]
    },
    "3 readiness is that of the change": {
        FAILURES: ["test_more_replicas_are_ready_without_a_new_pod"],
        WORDS: ["test_the_old_pods_trouble_does_not_end_the_wait_for_the_new_ones"],
        ROLLOUT: ["test_the_second_apply_changes_the_endpoint_and_waits_for_the_change"],
    },
    "4 what keeps pods from being made": {
        FAILURES: [
            "test_what_keeps_pods_from_being_made_is_read_from_the_replica_set",
            "test_a_missing_service_account_is_named",
        ],
        SETUP: ["test_a_quota_that_stops_the_pods_is_told"],
        ANY_FAILURE: [
            "test_a_quota_is_told",
            "test_a_quota_on_what_a_pod_does_not_name_is_told",
            "test_a_limit_range_is_told",
            "test_pod_security_is_told",
            "test_a_missing_account_is_told",
            "test_a_dead_webhook_is_told",
        ],
        WORDS: ["test_a_pod_that_was_not_made_is_explained_in_other_words"],
    },
    "5 a new image": {SETUP: ["test_a_new_image_reaches_the_runtime_and_the_jobs"]},
    "6 every served version": {
        SETUP: ["test_an_older_version_that_is_served_beside_the_preferred_one_is_found"]
    },
    "7 the workbench waits for its Secret": {SETUP: ["test_a_second_run_changes_nothing"]},
    "8 the word of the cluster's version, and owners of fields": {
        FAILURES: [
            "test_the_word_that_the_clusters_kserve_keeps_is_written",
            "test_a_field_that_kubectl_set_is_named_and_can_be_taken_over",
        ],
        SETUP: ["test_the_deployment_mode_goes_by_the_word_that_the_cluster_keeps"],
        SERVER: ["test_a_second_apply_by_the_server_changes_nothing"],
    },
    "9 reasons of the scheduler that mix": {
        FAILURES: ["test_the_nodes_that_are_nearest_to_fitting_are_said_first"],
        WORDS: ["test_the_scheduler_is_understood_in_other_words"],
        ANY_FAILURE: ["test_a_pods_state_is_explained"],
    },
    "10 setup.sh and a stale endpoint": {
        SETUP: ["test_the_readiness_of_the_old_pods_is_not_that_of_the_change"]
    },
    "11 uninstall": {
        SETUP: [
            "test_uninstall_finds_what_the_parts_made_and_minds_no_missing_kind",
            "test_uninstall_keeps_data_and_what_other_endpoints_use",
            "test_uninstall_can_be_tried_dry",
            "test_an_api_of_the_cluster_that_is_down_stops_neither_set_up_nor_uninstall",
        ]
    },
    "12 the API server is down": {
        FAILURES: [
            "test_a_server_that_is_down_is_a_line",
            "test_a_server_that_was_always_down_is_a_line",
            "test_rights_that_are_missing_are_a_line",
        ],
        SETUP: ["test_a_server_that_does_not_answer_is_told"],
        ANY_SETUP: ["test_a_server_that_is_down_is_a_line_of_setup"],
    },
    "13 air-gapped images, troubles of nodes, the dashboard's stop, overlays side by side": {
        SETUP: ["test_an_image_of_ones_own_reaches_the_air_gapped_overlay"],
        FAILURES: [
            "test_what_goes_wrong_on_a_node_is_explained",
            "test_a_pod_that_the_node_refuses_is_explained",
            "test_the_dashboards_stop_is_told",
        ],
        ANY_FAILURE: [
            "test_a_warning_about_a_pod_is_explained",
            "test_the_dashboards_stop_is_told_on_any_server",
        ],
        POLICY: ["test_overlays_live_side_by_side_in_one_namespace"],
    },
    "14 TLS and token behind the gateway, jobs of several nodes, Kueue's version, Pod Security": {
        "manifests/test_platform.py": [
            "test_what_stands_behind_the_inference_gateway_speaks_tls",
        ],
        "protocols/test_tls.py": [
            "test_pictures_come_over_tls_and_in_no_other_way",
            "test_a_renewed_certificate_is_taken_without_a_restart",
        ],
        "dreambooth/test_pipeline.py": [
            "test_the_multi_node_jobs_are_valid_and_run_the_same_command"
        ],
        SETUP: [
            "test_the_command_for_the_inference_gateway_has_a_token",
            "test_an_older_version_that_is_served_beside_the_preferred_one_is_found",
        ],
        SERVER: ["test_every_pod_template_passes_restricted"],
    },
}


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_tests_that_exist(row: str) -> None:
    assert ROWS[row]
    for file, names in ROWS[row].items():
        tree = ast.parse((ROOT / "tests" / file).read_text())
        there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert names and set(names) <= there, file


def test_no_row_is_without_tests() -> None:
    assert [int(row.split()[0]) for row in ROWS] == list(range(1, 15))
