# setup.sh, `atelier deploy` and every manifest against an API server: the tests' own, which is no
# kinder than a real one, or with TEST_KUBECONFIG=FILE any real one that has the CRDs.
.PHONY: test-cluster
test-cluster: install ## manifests, setup.sh and atelier deploy against an API server: TEST_KUBECONFIG=FILE for a real one
	PYTHONPATH=runtime:pipelines:. TEST_KUBECONFIG=$(abspath $(TEST_KUBECONFIG)) $(BIN)/python -m pytest -q -rs \
	  tests/deploy tests/manifests tests/dreambooth/test_pipeline.py::test_the_multi_node_jobs_are_valid_and_run_the_same_command
