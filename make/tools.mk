# What tests look with, from Debian's packages: a browser at the studio, promtool at alerts, exiftool at marks in
# pictures. A test whose tool is missing is skipped and says so.
TOOLS = chromium:chromium promtool:prometheus exiftool:libimage-exiftool-perl
AS_ROOT = $(if $(filter-out 0,$(shell id -u)),sudo)

.PHONY: tools
tools: ## Chromium, promtool and exiftool through apt, where they are missing
	missing=$$(for tool in $(TOOLS); do command -v $${tool%:*} >/dev/null || echo $${tool#*:}; done); \
	[ -z "$$missing" ] || { $(AS_ROOT) apt-get update -qq && \
	  $(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; }

# Asked for together, the tests wait for the tools.
unit: $(filter tools,$(MAKECMDGOALS))
