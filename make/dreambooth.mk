# Fine-tuning: the pipeline's YAML, the pipeline on this machine, the notebooks.
KFP := .engines/kfp
LOCAL_RUN ?= out/pipeline-local

.PHONY: kfp pipeline pipeline-local notebooks-html

kfp: $(KFP)/installed ## the environment in which pipelines are compiled and run

$(KFP)/installed: pipelines/atelier_training/environment.sh | install
	pipelines/atelier_training/environment.sh $(KFP) $(BIN)/python
	touch $@

# The tests compile the pipeline and run it.
unit: kfp

pipeline: kfp ## compile the pipeline into pipelines/atelier_training/dreambooth/*.yaml
	PYTHONPATH=runtime:pipelines $(KFP)/bin/python -m atelier_training.compile

pipeline-local: kfp ## pictures to published LoRA on the built-in model, on this machine
	PYTHONPATH=runtime:pipelines $(KFP)/bin/python -m atelier_training.local $(LOCAL_RUN)

notebooks-html: install ## run the notebooks and render them with their pictures into out/notebooks
	$(BIN)/jupyter nbconvert --to html --execute --output-dir out/notebooks notebooks/*.ipynb
