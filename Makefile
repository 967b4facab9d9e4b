# unbit: ssh into containers through the node's own sshd. See README.md.
#
#   make           build both modules, unbitctl and unbit-agent, in target/release
#   make help      this text
#
# On a fresh Debian 12 or 13, as root; both install what they need from Debian:
#   make demo      show logins on a private node, and give a shell in a container
#   make test      run the tests, except those below "More tests"
#
# Installing and packaging:
#   make install   install what was built; [DESTDIR=] [PREFIX=/usr]
#   make uninstall remove what make install installed; [DESTDIR=] [PREFIX=/usr]
#   make deb       Debian packages, in target/deb; as root
#                  [RELEASES="bookworm trixie"] [ARCH=arm64]
#   make dist      what is committed, as target/dist/unbit-VERSION.tar.xz
#   make release   what make dist makes, and the packages, bills of materials and
#                  SHA256SUMS; as root; [RELEASES="bookworm trixie"]
#
# Developing:
#   make check     formatting, lints, imports, man pages, documents (make lint),
#                  and licences (make supply-chain)
#   make test-fast tests of one minute, for after each change; as root
#   make stage     install into target/stage, from where tests/run takes it
#   make bench     what lookups cost, next to a bare stat; as root
#   make bench-login   what logins cost, next to an ordinary user's; as root
#                  [AGAINST=other.so] for both
#   make bench-agent   what a round of the agent's metrics costs; as root
#                  [CONTAINERS=10000]
#   make fuzz      each parser, with cargo-fuzz and a nightly toolchain
#                  [TARGET=name] [SECONDS=60]
#   make fuzz-nss  the NSS module, called as glibc calls it; as root; [SECONDS=60]
#   make minimal-versions   the oldest crates that the manifests allow
#   make miri      the NSS module under Miri, with a nightly toolchain
#   make clean     remove target/
#
# More tests, as root:
#   make test-repeat        every test 20 times while a processor is busy
#                           [TIMES=20] [BUSY=1]
#   make test-releases      with other releases of Debian, and their sshd
#   make test-cgroups       every cgroup layout
#   make test-load          500 logins while containers die
#   make test-faults        every system call of a login fails, with every errno
#   make test-packages      packages come and go while sessions are open
#                           [RELEASES=]
#   make test-mail          exim4 and postfix, which run a tenant's ~/.forward
#                           [RELEASES=]
#   make test-vm            a real Debian in qemu, with its kernel and systemd
#                           [RELEASES=]
#   make test-autopkgtest   debian/tests, by Debian's autopkgtest; [RELEASES=]
#   make test-arm64         packages and tests for arm64, in emulation
#   make test-engines       systemd-nspawn, podman, Docker, LXC, Incus and units
#                           [ENGINES="nspawn podman ..."]
#   make test-distribution  unbitctl with the real debootstrap and mmdebstrap
#   make test-reproducible  two builds in different directories, compared byte by byte
#
# Set when building; these defaults are the values of nss-unbit and pam-unbit in C:
#   UNBIT_CONTAINERS=/containers UNBIT_FIRST_UID=30000
#   UNBIT_SHELL=/bin/bash UNBIT_ADDRESS_BASE=10.0.0.0

PREFIX ?= /usr
MULTIARCH ?= $(shell gcc -print-multiarch)
LIBDIR = $(PREFIX)/lib/$(MULTIARCH)
NSS_FILE = $(LIBDIR)/libnss_unbit.so.2
PAM_FILE = $(LIBDIR)/security/pam_unbit.so
SBINDIR = $(PREFIX)/sbin
MANDIR = $(PREFIX)/share/man
MANUALS = unbit.7 nss-unbit.8 pam_unbit.8 unbitctl.8 unbit-agent.8
DOCDIR = $(PREFIX)/share/doc/unbit
# Where the shells of Debian look: zsh leaves a directory to packages and another to the operator's own.
ZSHDIR = $(PREFIX)/share/zsh/$(if $(filter /usr,$(PREFIX)),vendor-completions,site-functions)
PROGRAMS = unbitctl unbit-agent
completions_of = bash:$(PREFIX)/share/bash-completion/completions/$(1) fish:$(PREFIX)/share/fish/vendor_completions.d/$(1).fish zsh:$(ZSHDIR)/_$(1)
UNITDIR = $(PREFIX)/lib/systemd/system
UNITS = $(notdir $(wildcard agent/systemd/*.service))

CARGO_TARGET_DIR ?= $(CURDIR)/target
ROOT = $(filter 0,$(shell id -u))
export CARGO_TARGET_DIR
$(foreach setting,UNBIT_CONTAINERS UNBIT_FIRST_UID UNBIT_SHELL UNBIT_ADDRESS_BASE,$(if $($(setting)),$(eval export $(setting))))
# For another architecture, MULTIARCH's: CARGO_BUILD_TARGET=aarch64-unknown-linux-gnu, and RUNNER=qemu-aarch64, which runs its programs.
ifdef CARGO_BUILD_TARGET
export CARGO_BUILD_TARGET
CARGO_NAME := CARGO_TARGET_$(shell echo $(CARGO_BUILD_TARGET) | tr a-z- A-Z_)
export $(CARGO_NAME)_LINKER ?= $(MULTIARCH)-gcc
$(if $(RUNNER),$(eval export $(CARGO_NAME)_RUNNER ?= $(RUNNER)))
endif
BUILT = $(CARGO_TARGET_DIR)/$(CARGO_BUILD_TARGET:%=%/)release
NSS = $(BUILT)/libnss_unbit.so
PAM = $(BUILT)/libpam_unbit.so
CTL = $(BUILT)/unbitctl
AGENT = $(BUILT)/unbit-agent
SOURCES := Cargo.toml Cargo.lock $(wildcard examples/*) $(shell find shared nss_unbit join pam_unbit unbitctl agent -name Cargo.toml -o -path '*/src/*' -o -name 'build.rs' -o -name '*.map')
CARGO = cargo
INSTALL = install
STAGE = $(CARGO_TARGET_DIR)/stage
RELEASE ?= $(shell . /etc/os-release && echo $$VERSION_CODENAME)
STAGED_NSS = $(STAGE)/usr/lib/$(MULTIARCH)/libnss_unbit.so.2
# The same bytes wherever the tree, the crates and the target directory are. The last that fits counts.
HERE = --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=/usr/src/cargo --remap-path-prefix=$(CURDIR)=/usr/src/unbit --remap-path-prefix=$(CARGO_TARGET_DIR)=/usr/src/unbit/target
NODE = tests/node/run --release $(RELEASE) --modules $(STAGE)

.PHONY: all help build install uninstall demo test test-fast test-repeat test-units test-releases test-cgroups test-load test-faults test-reproducible fuzz fuzz-nss miri bench bench-login bench-agent deb test-packages test-mail test-vm test-autopkgtest test-arm64 test-engines test-distribution check lint supply-chain dist release minimal-versions stage clean
all: build
	@echo 'Built in $(CARGO_TARGET_DIR)/release. Next: `$(if $(ROOT),,sudo )make demo` to watch a login, `$(if $(ROOT),,sudo )make install` to install; `make help` lists the rest.'

# The comment at the head of this file.
help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST))

build:
	@tests/prepare build
	@echo 'make: building with cargo, in release mode'
	@RUSTFLAGS="$(strip $(RUSTFLAGS) $(HERE))" $(CARGO) build --release --locked -p nss_unbit -p pam_unbit -p unbitctl -p unbit_agent
	@touch $(NSS) $(PAM) $(CTL) $(AGENT)

# So that `make && sudo make install` needs no cargo for root, and `make install` alone never installs something old.
$(NSS) $(PAM) $(CTL) $(AGENT) &: $(SOURCES)
	@$(MAKE) --no-print-directory build

install: $(NSS) $(PAM) $(CTL) $(AGENT)
	$(INSTALL) -d $(DESTDIR)$(LIBDIR)/security $(DESTDIR)$(SBINDIR) $(DESTDIR)$(MANDIR)/man7 $(DESTDIR)$(MANDIR)/man8 $(DESTDIR)$(UNITDIR) $(DESTDIR)$(PREFIX)/lib/sysusers.d
	$(INSTALL) -m 0644 -s $(NSS) $(DESTDIR)$(NSS_FILE).new
	$(INSTALL) -m 0644 -s $(PAM) $(DESTDIR)$(PAM_FILE).new
	mv -f $(DESTDIR)$(NSS_FILE).new $(DESTDIR)$(NSS_FILE) # in one step: every process of the node may be about to load it
	mv -f $(DESTDIR)$(PAM_FILE).new $(DESTDIR)$(PAM_FILE)
	$(INSTALL) -m 0755 -s $(CTL) $(DESTDIR)$(SBINDIR)/unbitctl
	$(INSTALL) -m 0755 -s $(AGENT) $(DESTDIR)$(SBINDIR)/unbit-agent
	set -e; for unit in $(UNITS); do $(INSTALL) -m 0644 agent/systemd/$$unit $(DESTDIR)$(UNITDIR); done
	$(INSTALL) -m 0644 agent/systemd/sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/unbit-agent.conf
	set -e; for page in $(MANUALS); do $(INSTALL) -m 0644 man/$$page $(DESTDIR)$(MANDIR)/man$${page##*.}; done
	$(if $(DESTDIR),,ldconfig)
	ln -sf nss-unbit.8 $(DESTDIR)$(MANDIR)/man8/libnss_unbit.so.2.8
	install -d $(DESTDIR)$(DOCDIR)/examples $(DESTDIR)$(DOCDIR)/docs
	install -m 0644 examples/* $(DESTDIR)$(DOCDIR)/examples
	install -m 0644 docs/*.md $(DESTDIR)$(DOCDIR)/docs
	install -m 0644 README.md SECURITY.md $(DESTDIR)$(DOCDIR)
	set -e; for each in $(foreach program,$(PROGRAMS),$(addprefix $(program):,$(call completions_of,$(program)))); do \
	    program=$${each%%:*}; \
	    each=$${each#*:}; \
	    file=$(DESTDIR)$${each#*:}; \
	    $(INSTALL) -d "$${file%/*}"; \
	    $(RUNNER) $(BUILT)/$$program completions $${each%%:*} >"$$file"; \
	    chmod 0644 "$$file"; \
	done

uninstall:
	@! grep -qs '^[^#]*\bpam_unbit\.so' $(DESTDIR)/etc/pam.d/* || echo 'note: /etc/pam.d still names pam_unbit.so; container users are refused, all others log in'
	@! grep -qsE '^[^#]*\bunbit\b' $(DESTDIR)/etc/nsswitch.conf || echo 'note: /etc/nsswitch.conf still names unbit; glibc passes over a module that is not there'
	rm -f $(DESTDIR)$(NSS_FILE) $(DESTDIR)$(PAM_FILE) $(DESTDIR)$(SBINDIR)/unbitctl $(DESTDIR)$(SBINDIR)/unbit-agent $(foreach page,$(MANUALS),$(DESTDIR)$(MANDIR)/man$(lastword $(subst ., ,$(page)))/$(page)) $(DESTDIR)$(MANDIR)/man8/libnss_unbit.so.2.8
	rm -f $(foreach unit,$(UNITS),$(DESTDIR)$(UNITDIR)/$(unit)) $(DESTDIR)$(PREFIX)/lib/sysusers.d/unbit-agent.conf
	rm -f $(foreach program,$(PROGRAMS),$(foreach each,$(call completions_of,$(program)),$(DESTDIR)$(lastword $(subst :, ,$(each)))))
	rm -rf $(DESTDIR)$(DOCDIR)

stage: build
	@rm -rf $(STAGE)
	@$(MAKE) --no-print-directory install DESTDIR=$(STAGE) PREFIX=/usr >/dev/null

demo:
	@tests/prepare node
	@$(MAKE) --no-print-directory stage
	@$(NODE) --small -- /unbit/tests/demo

test:
	@tests/prepare node
	tests/build $(RELEASE)
	tests/run --release $(RELEASE) --all

# What finds most in a minute: the unit tests and corpora, logins that work or are refused, their log, what binds a session, the NSS module.
FAST = unreachable,unit_tests,refusals,login,confinement,session_log,nss_proof,nss_clients,corpora
test-fast:
	@tests/prepare node
	tests/build $(RELEASE)
	tests/run --release $(RELEASE) --jobs 3 --only $(FAST)

TIMES = 20
BUSY = 1
test-repeat:
	@tests/prepare node
	tests/build $(RELEASE)
	tests/repeat --times $(TIMES) --busy $(BUSY)

# The unit tests that need neither a node nor root.
PACKAGES = nss_unbit unbit-shared unbit-join pam_unbit unbitctl
test-units:
	$(CARGO) test --locked $(PACKAGES:%=-p %) -- $(SKIP:%=--skip %)

test-releases:
	@tests/prepare node
	@$(MAKE) --no-print-directory stage
	tests/releases
	tests/sshd-releases bullseye trixie testing

# The layouts that this machine can make: with the memory controller on cgroup v1, all of them.
LAYOUTS = $(if $(shell grep -s memory /proc/self/cgroup),v1 v1-single v2 hybrid,v2)
test-cgroups:
	@tests/prepare node
	@$(MAKE) --no-print-directory stage
	set -e; for layout in $(LAYOUTS); do tests/run --release $(RELEASE) --cgroups $$layout cgroups; done
	@[ '$(LAYOUTS)' != v2 ] || { echo 'NOT TRIED: v1, v1-single, hybrid (the memory controller of this machine is not on cgroup v1)' >&2; [ "$$CI" != true ]; }

test-load:
	@tests/prepare node
	@$(MAKE) --no-print-directory stage
	LOGINS=500 tests/run --release $(RELEASE) load --nocapture

test-faults:
	@tests/prepare node
	@$(MAKE) --no-print-directory stage
	FAULTS=all tests/run --release $(RELEASE) faults every --nocapture

test-reproducible:
	tests/reproducible

# With a nightly toolchain that has Miri.
miri:
	$(CARGO) +nightly miri test --locked -p nss_unbit -p unbit-shared

SECONDS = 60
TARGET =
fuzz:
	@CARGO='$(CARGO)' fuzz/run $(SECONDS) $(TARGET)

fuzz-nss:
	@tests/prepare node
	@$(MAKE) --no-print-directory stage
	$(CARGO) build --release --locked -p unbit-tests --bin fuzz-nss
	$(NODE) --quiet --without sshd,emperor -- /unbit/target/release/fuzz-nss $(SECONDS) $(STAGED_NSS:$(CARGO_TARGET_DIR)/%=/unbit/target/%)

bench:
	@tests/prepare node
	@$(MAKE) --no-print-directory stage
	tests/bench-nss $(AGAINST)

bench-login:
	@tests/prepare node
	@$(MAKE) --no-print-directory stage
	tests/bench-login $(AGAINST) $(NODE_OPTIONS)

CONTAINERS = 10000
bench-agent:
	@tests/prepare node
	@$(MAKE) --no-print-directory stage
	tests/bench-agent $(CONTAINERS)

RELEASES = bookworm trixie
deb:
	@tests/prepare build
	ARCH=$(ARCH) debian/build $(RELEASES)

test-packages: deb
	tests/packages $(RELEASES)

test-mail: stage
	tests/mail $(RELEASES)

test-vm: deb
	tests/vm/run $(RELEASES)

test-autopkgtest: deb
	tests/autopkgtest $(RELEASES)

test-arm64:
	@tests/prepare build
	tests/arm64

test-engines:
	@tests/prepare node
	@$(MAKE) --no-print-directory stage
	tests/engines/run $(ENGINES)

test-distribution: stage
	tests/distribution $(RELEASE)

check: lint supply-chain

lint:
	@tests/prepare check
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --all --check
	$(CARGO) clippy --locked --manifest-path fuzz/Cargo.toml -p unbit-properties -p unbitctl-library -p unbit-agent-library --all-targets -- -D warnings
	tests/import-circles shared nss_unbit join pam_unbit unbitctl agent tests
	tests/documents

supply-chain:
	@tests/prepare check
	tests/supply-chain

VERSION = $(shell sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
DIST = $(CARGO_TARGET_DIR)/dist
dist:
	@git rev-parse --quiet --verify HEAD >/dev/null || { echo 'make dist: a clone is needed, for what is committed is what is packed' >&2; exit 1; }
	@git diff --quiet HEAD || echo 'note: what is not committed is not in the archive' >&2
	@mkdir -p $(DIST)
	git -c tar.umask=0022 archive --prefix=unbit-$(VERSION)/ HEAD | xz -9 >$(DIST)/unbit-$(VERSION).tar.xz

release:
	@tests/prepare build
	@RELEASES='$(RELEASES)' tests/release

minimal-versions:
	@tests/minimal-versions

clean:
	rm -rf --one-file-system $(CARGO_TARGET_DIR)
