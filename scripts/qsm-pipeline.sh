#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# Moves a virtual machine, running or not, to another host or to other storage: qsm-pipeline(1).
# The stages stand in the order in which they happen; main, at the end, walks through them.
set -u
umask 077
LC_ALL=C
export LC_ALL

VERSION=0.1.0

usage() {
	cat <<'TEXT'
Usage: qsm-pipeline.sh [OPTION]... VM [USER@]HOST:DIR
       qsm-pipeline.sh [OPTION]... VM DIR
Moves the virtual machine VM with its disks to DIR/VM on HOST, or to other storage on this host. The
same command goes on with a move that was interrupted.

      --plan                 preflight only: everything that stands in the way
      --abort                take back a move that is not committed
      --settle=source|destination
                             decide by hand who owns the VM after exit status 81
      --i-fenced-the-other   with --settle: the other host is off and stays off
      --network=(MAC|OLD)=NEW
                             a network card's network at the destination (repeatable)
      --name=NAME            another name at the destination
      --hypervisor=H         the adapter is hv-H on both sides (default: qemu)
      --ssh=COMMAND          how to reach HOST (default: ssh, never asking)
      --remote-sudo          work with sudo -n on HOST
      --remote-path=DIR      the tools on HOST lie in DIR
      --rate-limit=RATE      copy at most RATE bytes a second (10M, 100mbit)
      --compress[=LEVEL]     compress what is sent (level 1 to 19)
      --retry=TIME           how long to try to reach HOST again (default: 5m)
      --reserve=SIZE         stop when less is free beside the source's disks (default: 256M)
      --merge=before         merge the last AVHDs before the VM goes on (the only way so far)
      --delete-source        delete the source's disks at the end
      --report=FILE          write the report, in JSON, to FILE
      --json                 the result is JSON
      --progress=json        progress of each disk as JSON lines on stderr
  -q, --quiet                no messages but errors
  -h, --help                 this text
  -V, --version              the version
TEXT
}

# ---- where things are ----

self=$(readlink -f -- "$0")
here=${self%/*}
parts=''
for d in "$here" "$here/../share/qsm-tools" /usr/local/share/qsm-tools /usr/share/qsm-tools; do
	if [ -f "$d/qsm-job.sh" ] && [ -f "$d/qsm-dest.sh" ]; then
		parts=$d
		break
	fi
done
if [ -z "$parts" ]; then
	echo "qsm-pipeline: its parts, qsm-job.sh and qsm-dest.sh, are not beside it" >&2
	exit 69
fi

# shellcheck source=scripts/qsm-job.sh
. "$parts/qsm-job.sh"
PATH=$here:$PATH:/usr/sbin:/sbin
export PATH

hv() {
	"hv-$opt_hypervisor" --quiet "$@"
}

# ---- options ----

opt_quiet='' opt_json='' opt_plan='' opt_abort='' opt_settle='' opt_fenced='' opt_name='' opt_hypervisor=qemu
opt_ssh='' opt_sudo='' opt_path='' opt_rate='' opt_compress='' opt_retry=300 opt_reserve=268435456
opt_delete='' opt_progress='' opt_report='' opt_vm='' opt_dest='' opt_networks=''

option() { # ARGUMENT
	case $1 in
	--plan) opt_plan=1 ;;
	--abort) opt_abort=1 ;;
	--settle=source | --settle=destination) opt_settle=${1#*=} ;;
	--i-fenced-the-other) opt_fenced=1 ;;
	--network=?*=?*)
		quote "${1#*=}"
		opt_networks="$opt_networks $quoted"
		;;
	--name=?*) opt_name=${1#*=} ;;
	--hypervisor=?*) opt_hypervisor=${1#*=} ;;
	--ssh=?*) opt_ssh=${1#*=} ;;
	--remote-sudo) opt_sudo=1 ;;
	--remote-path=?*) opt_path=${1#*=} ;;
	--rate-limit=?*) opt_rate=$1 ;;
	--compress | --compress=?*) opt_compress=$1 ;;
	--retry=?*)
		duration_of "${1#*=}" || misuse "$1: a time as 30s, 5m or 1h is wanted"
		opt_retry=$duration
		;;
	--reserve=?*)
		size_of "${1#*=}" || misuse "$1: a size as 512M or 10G is wanted"
		opt_reserve=$size
		;;
	--merge=before) ;;
	--merge=*) misuse "$1: only --merge=before is there, the VM resumes on merged disks" ;;
	--delete-source) opt_delete=1 ;;
	--report=?*) opt_report=${1#*=} ;;
	--json) opt_json=1 ;;
	--progress=json) opt_progress=$1 ;;
	-q | --quiet) opt_quiet=1 ;;
	-h | --help)
		usage || exit 74
		exit 0
		;;
	-V | --version)
		printf 'qsm-pipeline.sh (qsm-tools) %s\n' "$VERSION" || exit 74
		exit 0
		;;
	*) misuse "$1: no such option, or not with such a value" ;;
	esac
}

name_ok() { # NAME: fit for a VM and a folder
	case $1 in
	'' | .* | */* | *"$NL"*) return 1 ;;
	esac
}

# A colon before any slash means a host, as in scp.
destination() { # ARGUMENT
	far_local='' far_host='' far_dir=$1
	case ${1%%/*} in
	*:*)
		far_host=${1%%:*} far_dir=${1#*:}
		case $far_host in
		'' | -* | *[!A-Za-z0-9@._%-]*) misuse "$1: not a host" ;;
		esac
		[ -n "$far_dir" ] || far_dir=.
		;;
	*)
		far_local=1 far_host=$(uname -n)
		case $1 in
		'') misuse "a folder is wanted" ;;
		/*) ;;
		*) far_dir=$(pwd)/$1 ;;
		esac
		;;
	esac
	[ "$far_dir" = / ] || far_dir=${far_dir%/}
	dest=$far_dir
	[ -n "$far_local" ] || dest=$far_host:$far_dir
}

check_options() {
	case $opt_hypervisor in
	*[!A-Za-z0-9_-]*) misuse "--hypervisor=$opt_hypervisor: letters, digits, - and _ are wanted" ;;
	esac
	name_ok "$opt_vm" || misuse "\"$opt_vm\" is no name of a VM"
	[ -z "$opt_name" ] || name_ok "$opt_name" || misuse "--name=$opt_name: not a name for a VM"
	if [ -n "$far_local" ] && [ -n "$opt_name$opt_networks" ]; then
		misuse "--name and --network are for a move to another host"
	fi
	if [ -n "$opt_fenced" ] && [ -z "$opt_settle" ]; then
		misuse "--i-fenced-the-other belongs to --settle"
	fi
	case $opt_plan$opt_abort${opt_settle:+1} in
	11*) misuse "only one of --plan, --abort and --settle" ;;
	esac
	far_path=$opt_path far_hyp=$opt_hypervisor far_uuid='' far_token=''
	: "${opt_ssh:=ssh}"
	# Nobody is there to be asked, and a link that is cut must be noticed. What --ssh says itself counts first.
	case ${opt_ssh%% *} in
	ssh | */ssh) opt_ssh="$opt_ssh -T -x -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=3 -o ServerAliveCountMax=4" ;;
	esac
}

set_places() {
	if [ "$(id -u)" -eq 0 ]; then
		state_dir=${QSM_STATE_DIR:-/var/lib/qsm}
	else
		state_dir=${QSM_STATE_DIR:-${XDG_STATE_HOME:-$HOME/.local/state}/qsm}
	fi
	mkdir -p -- "$state_dir" || die 73 "cannot make $state_dir"
	key=$(printf '%s' "$dest" | tr -c 'A-Za-z0-9._@-' '_' | cut -c 1-80)-$(printf '%s' "$dest" | cksum | cut -d ' ' -f 1)
}

# ---- the VM ----

# What the adapter says of the VM here: v_*.
status() {
	status_json=$(hv status --json -- "$opt_vm") || return
	status_vars=$(printf '%s\n' "$status_json" | jq -r '
		def v($n; $x): "\($n)=\($x // "" | tostring | @sh)";
		v("v_uuid"; .uuid), v("v_state"; .state), v("v_reason"; .reason), v("v_owner"; .owner),
		v("v_token"; .token), v("v_starts"; .starts), v("v_memory"; .memory // 0),
		v("v_ndisks"; .disks | length),
		(.disks | to_entries[] | "v_\(.key)_" as $p | .value
			| v("\($p)target"; .target), v("\($p)leaf"; .leaf), v("\($p)control"; .control),
			  v("\($p)serving"; .serving))') || die 69 "jq failed on what hv-$opt_hypervisor says"
	eval "$status_vars"
}
v_uuid='' v_state='' v_reason='' v_owner='' v_token='' v_starts=0 v_memory=0 v_ndisks=0

must_status() {
	status || die 81 "hv-$opt_hypervisor does not tell the state of $opt_vm"
}

# The targets, quoted, in targets.
list_targets() {
	targets='' n=0
	while [ "$n" -lt "$a_ndisks" ]; do
		disk "$n"
		quote "$target"
		targets="$targets $quoted"
		n=$((n + 1))
	done
}

# ---- the job ----

# The folder of this move. The VM may be gone from here already: then an old job tells.
find_job() {
	if status; then
		:
	elif [ $? -eq 66 ]; then
		for d in "$state_dir"/*."$key"; do
			[ -f "$d/attempt" ] || continue
			load_attempt "$d"
			[ "$a_vm" = "$opt_vm" ] || continue
			v_uuid=$a_uuid v_owner=none v_state=off
		done
		[ -n "$v_uuid" ] || die 78 "there is no VM $opt_vm here"
	else
		die 78 "hv-$opt_hypervisor does not tell the state of $opt_vm"
	fi
	job=$state_dir/$v_uuid.$key
	far_uuid=$v_uuid far_name=${opt_name:-$opt_vm}
}

load_attempt() { # FOLDER
	a_token='' a_vm='' a_uuid='' a_dest='' a_name='' a_was='' a_ndisks=0
	# Written by store_attempt, in a folder that only its owner reads and writes.
	# shellcheck disable=SC1091
	. "$1/attempt" || die 74 "cannot read $1/attempt"
}

open_job() {
	lock_job
	replay
	# By now nothing changes but by this process.
	if [ "$v_owner" != none ]; then must_status; fi
	if [ -f "$job/attempt" ] && [ -n "$j_open$j_finished$j_aborted" ]; then
		load_attempt "$job"
		far_token=$a_token far_name=$a_name
	fi
	mkdir -p -- "$tmp" || die 73 "cannot make $tmp"
}

# Another move of the same VM that is not over.
other_job() {
	for d in "$state_dir/$v_uuid".*/; do
		d=${d%/}
		if [ ! -f "$d/journal" ] || [ "$d" = "$job" ]; then
			continue
		fi
		this=$job job=$d
		replay
		job=$this
		[ -n "$j_open" ] || continue
		load_attempt "$d"
		block "a move of $opt_vm to $a_dest is not over: finish it, or take it back with --abort"
	done
	replay
}

new_attempt() {
	a_token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
	a_vm=$opt_vm a_uuid=$v_uuid a_dest=$dest a_name=$far_name
	a_ndisks=$v_ndisks
	case $v_state in
	running | paused) a_was=$v_state ;;
	saved) a_was=paused ;;
	*) a_was=off ;;
	esac
	n=0
	while [ "$n" -lt "$a_ndisks" ]; do
		eval "a_${n}_target=\$v_${n}_target a_${n}_base=\$v_${n}_leaf"
		n=$((n + 1))
	done
	mkdir -p -- "$job" || die 73 "cannot make $job"
	make_durable "$state_dir"
	store_attempt
	note begin "$a_token"
	replay
	far_token=$a_token
}

# ---- stages, as they are reported ----

begin_stage() { # NAME
	stage=$1
	clock
	stage_from=$now
}
stage=''

end_stage() { # BYTES
	clock
	took "$stage" "$1" $((now - stage_from))
}

took() { # STAGE BYTES HUNDREDTHS
	note stage "$@"
	j_stages="$j_stages$*$NL"
	if [ "$2" -gt 0 ]; then
		say "$1: $(human "$2") in $(seconds "$3") s"
	else
		say "$1: $(seconds "$3") s"
	fi
}

# ---- preflight ----

block() { # TEXT
	printf '%s\n' "$1" >>"$tmp/blockers"
}

preflight() {
	begin_stage preflight
	: >"$tmp/blockers"
	preflight_tools
	preflight_vm
	plan_bytes=0
	n=0
	: >"$tmp/disks"
	while [ "$n" -lt "$v_ndisks" ]; do
		preflight_disk "$n"
		n=$((n + 1))
	done
	growth=$((plan_bytes / 16 + 67108864))
	other_job
	preflight_far
}

preflight_tools() {
	for d in vhd-snap vhd-send vhd-info vm-export jq flock sync awk df od cksum "hv-$opt_hypervisor"; do
		command -v "$d" >/dev/null 2>&1 || block "$d is not there"
	done
	[ -n "$far_local" ] || command -v "${opt_ssh%% *}" >/dev/null 2>&1 || block "${opt_ssh%% *} is not there"
}

preflight_vm() {
	case $v_owner in
	owner) ;;
	moved) block "$opt_vm has moved away: it is no longer this host's" ;;
	*) block "$opt_vm cannot be moved: its ownership record is \"$v_owner\"" ;;
	esac
	case $v_state in
	running | paused | off) ;;
	saved) block "$opt_vm stands still after a save: resume it, or stop it, and move it then" ;;
	*) block "$opt_vm is $v_state${v_reason:+ ($v_reason)}: start it, or stop it, first" ;;
	esac
	[ "$v_ndisks" -gt 0 ] || block "$opt_vm has no disk"
}

# Sound, a VHD, served, and with room beside it for what will be written meanwhile.
preflight_disk() { # INDEX
	eval "target=\$v_$1_target leaf=\$v_$1_leaf serving=\$v_$1_serving"
	vhd-info --json --chain --unlocked -- "$leaf" >"$tmp/info" 2>"$tmp/error" || {
		block "disk $target: $(head -n 1 "$tmp/error" | sed 's/^vhd-info: //')"
		return
	}
	jq -r '.files[0] | [.size, ([.size, ([.chain[].allocated] | add)] | min), .format, .warning // "-"] | @tsv' \
		"$tmp/info" >"$tmp/line"
	IFS='	' read -r _ disk_bytes format warning <"$tmp/line"
	plan_bytes=$((plan_bytes + disk_bytes + 1048576))
	jq -c --arg t "$target" '{target: $t, leaf: .files[0].file, size: .files[0].size,
		layers: (.files[0].chain | length)}' "$tmp/info" | jq -c --argjson b "$disk_bytes" '. + {bytes: $b}' >>"$tmp/disks"
	[ "$format" = vhd ] || block "disk $target: $leaf is $format; vhd-convert makes a VHD of it"
	[ "$warning" = - ] || block "disk $target: $leaf: $warning"
	case $v_state in
	running | paused) ;;
	*) return ;;
	esac
	[ "$serving" = true ] || block "disk $target: its server died ('hv-$opt_hypervisor repair' restarts it)"
	free=$(space "${leaf%/*}")
	[ "${free:-$opt_reserve}" -ge "$opt_reserve" ] ||
		block "disk $target: ${leaf%/*} has $(human "$free") free, less than the reserve of $(human "$opt_reserve")"
	[ -w "${leaf%/*}" ] || block "disk $target: ${leaf%/*} is not writable: no checkpoint can be made there"
}

space() { # DIR: free bytes there
	df -Pk -- "$1" 2>/dev/null |
		awk 'NR > 1 { for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+%$/) { printf "%.0f\n", $(i - 1) * 1024; exit } }'
}

preflight_far() {
	vm-export --hypervisor="$opt_hypervisor" -- "$opt_vm" >"$tmp/vm.xml" ||
		block "vm-export cannot describe $opt_vm"
	{
		eval "far_call d_preflight $VERSION $((plan_bytes + growth + v_memory)) $opt_networks"
		cat -- "$tmp/vm.xml"
	} | {
		far_run >"$tmp/far" 2>"$tmp/error"
		echo $? >"$tmp/status"
	}
	read -r d <"$tmp/status"
	far_version='' far_clock='' far_free=''
	while read -r word rest; do
		case $word in
		blocker) block "$rest" ;;
		version) far_version=$rest ;;
		clock) far_clock=$rest ;;
		free) far_free=$rest ;;
		esac
	done <"$tmp/far"
	if cut_off "$d"; then
		block "$far_host cannot be reached (status $d): $(head -n 1 "$tmp/error")"
	elif [ "$d" -ne 0 ]; then
		block "$far_host: the check failed with status $d: $(head -n 1 "$tmp/error")"
	fi
	skew=0
	[ -z "$far_clock" ] || skew=$((far_clock - $(date +%s)))
	case $skew in
	[0-9] | -[0-9]) ;;
	*) warn "the clocks differ by $skew s" ;;
	esac
}

plan_json() {
	jq -n --rawfile b "$tmp/blockers" --slurpfile d "$tmp/disks" --arg vm "$opt_vm" --arg uuid "$v_uuid" \
		--arg state "$v_state" --arg dest "$dest" --argjson bytes "$plan_bytes" \
		--argjson memory "$v_memory" --arg free "$far_free" --arg version "$far_version" \
		--argjson skew "$skew" '
		($b | split("\n")[:-1]) as $b
		| {version: 1, plan: true, ok: ($b == []), vm: $vm, uuid: $uuid, state: $state, destination: $dest,
		   blockers: $b, disks: $d, bytes: $bytes, memory: $memory,
		   destination_free: (if $free == "" then null else $free | tonumber end),
		   destination_version: (if $version == "" then null else $version end), clock_skew: $skew}'
}

# Everything that stands in the way, in one go.
refuse() {
	if [ -n "$opt_json" ]; then
		plan_json
		opt_json=''
	fi
	while IFS= read -r line; do
		warn "$line"
	done <"$tmp/blockers"
	die 78 "$opt_vm is not moved; nothing was changed, it is $v_state here"
}

show_plan() {
	[ ! -s "$tmp/blockers" ] || refuse
	if [ -n "$opt_json" ]; then
		plan_json
	else
		printf '%s (%s), %s, can move to %s\n' "$opt_vm" "$v_uuid" "$v_state" "$dest"
		jq -r '"disk \(.target): \(.leaf), \(.size) bytes, at most \(.bytes) to copy"' "$tmp/disks"
		printf 'free there: %s, needed: %s\n' "$(human "${far_free:-0}")" \
			"$(human $((plan_bytes + growth + v_memory)))"
	fi
	exit 0
}

# ---- checkpoint ----

# From here on the disks of the job are frozen and an AVHD each takes what is written. A disk that an
# earlier, interrupted run switched already is left as it is.
checkpoint() {
	[ -z "$j_checkpoint" ] || return 0
	begin_stage checkpoint
	[ "$a_was" = off ] || snapshot base || rollback "the checkpoint could not be made"
	must_status
	note checkpoint
	end_stage 0
}

# An empty AVHD on each disk (only on those that still stand on their base), live, all or none. The paths
# of the AVHDs are in top_INDEX afterwards.
snapshot() { # [base]
	set -- "${1:-}"
	n=0
	while [ "$n" -lt "$a_ndisks" ]; do
		disk "$n"
		n=$((n + 1))
		[ -z "$1" ] || [ "$leaf" = "$base" ] || continue
		set -- "$@" --live="$leaf=$control"
	done
	shift
	[ $# -gt 0 ] || return 0
	vhd-snap --quiet --json "$@" >"$tmp/snap" || return
	eval "$(jq -r '.snapshots | to_entries[] | "top_\(.key)=\(.value.child | @sh)"' "$tmp/snap")"
}

# ---- copy ----

# One disk to the other side, in the background: child is its process. The statuses of both ends and
# the receipts are in files X.*, for judge_send.
send_disk() { # X FUNCTION TARGET VHD-SEND'S ARGUMENTS…
	rm -f -- "$tmp/$1".*
	far_call "$2" "$3" >"$tmp/$1.call"
	send_x=$tmp/$1
	shift 3
	send_parts "$@" 8>&- &
	child=$!
}
child=''

send_parts() {
	{
		cat -- "$send_x.call"
		# shellcheck disable=SC2086
		vhd-send $opt_progress ${opt_quiet:+--quiet} $opt_compress --receipt="$send_x.sent" "$@" &
		echo $! >"$send_x.pid"
		remember_child $!
		wait $!
		echo $? >"$send_x.status"
		rm -f -- "$send_x.pid"
	} | {
		far_run >"$send_x.got"
		echo $? >"$send_x.far"
	}
	clock
	echo "$now" >"$send_x.end"
}

stop_sending() {
	for d in "$tmp"/*.pid; do
		[ -s "$d" ] || continue
		read -r d <"$d"
		kill "$d" 2>/dev/null || :
	done
}

# 0 sent, verified and equal; 1 the link was cut; 2 the other side has no room; 3 the source's reserve is
# reached; 4 interrupted; 5 another failure, named in failure.
judge_send() { # X
	failure=''
	read -r send_status <"$tmp/$1.status" || send_status=70
	read -r far_status <"$tmp/$1.far" || far_status=255
	[ -z "$interrupted" ] || return 4
	[ ! -e "$tmp/full" ] || return 3
	if [ "$send_status" -eq 0 ] && [ "$far_status" -eq 0 ]; then
		same_receipts "$tmp/$1" && return 0
		failure="disk $target: what arrived is not what was sent"
		return 5
	fi
	if cut_off "$far_status" || [ "$far_status" -eq 75 ]; then
		failure="$far_host is not reached (status $far_status)"
		return 1
	elif [ "$far_status" -eq 73 ]; then
		failure="disk $target: $far_host cannot write it: no space, or no permission"
		return 2
	elif [ "$send_status" -ne 0 ] && { [ "$far_status" -eq 76 ] || [ "$far_status" -eq 0 ]; }; then
		failure="disk $target cannot be read (vhd-send ended with status $send_status)"
		return 5
	fi
	failure="disk $target: $far_host failed with status $far_status"
	return 5
}

# The sums of the stream at both ends, and of the content, where both know it.
same_receipts() { # FILE
	[ -s "$1.sent" ] && [ -s "$1.got" ] || return 1
	jq -es '.[0].stream_sum != null and .[0].stream_sum == .[1].stream_sum and .[0].size == .[1].size
		and (.[0].content_sum == null or .[1].content_sum == null or .[0].content_sum == .[1].content_sum)' \
		"$1.sent" "$1.got" >/dev/null || return 1
	sent=$(jq -s '.[0].bytes' "$1.got")
}
sent=0

copy() {
	begin_stage copy
	far_insist d_prepare || {
		cut_off $? && resumable "$far_host does not answer"
		rollback "$far_host cannot take the disks"
	}
	watch_space
	total=0
	i=0
	while [ "$i" -lt "$a_ndisks" ]; do
		disk "$i"
		case $j_copied in
		*" $target "*) ;;
		*) copy_disk ;;
		esac
		i=$((i + 1))
	done
	stop_watching
	[ "$total" -eq 0 ] || end_stage "$total"
}

# Again and again while only the link fails. A copy that was under way for a while proves that it had come back.
copy_disk() {
	clock
	deadline=$((now + opt_retry * 100))
	while :; do
		clock
		tried=$now
		say "copying disk $target ($base)"
		# shellcheck disable=SC2086
		send_disk base d_recv_base "$target" $opt_rate -- "$base"
		wait_child "$child"
		judge_send base && break
		case $? in
		1) ;;
		4) resumable "interrupted" ;;
		3) rollback "disk $target: less than $(human "$opt_reserve") are free beside its AVHD" ;;
		*) rollback "$failure" ;;
		esac
		clock
		[ $((now - tried)) -lt 3000 ] || deadline=$((now + opt_retry * 100))
		[ "$now" -lt "$deadline" ] || resumable "$failure"
		warn "$failure; trying again for $(((deadline - now) / 100)) s"
		pause_for 2
		[ -z "$interrupted" ] || resumable "interrupted"
	done
	note copied "$target"
	j_copied="$j_copied$target "
	total=$((total + sent))
}

# Ends the copy while there is still room for the guest to go on.
watch_space() {
	[ "$a_was" != off ] || return 0
	(
		while kill -0 $$ 2>/dev/null; do
			n=0
			while [ "$n" -lt "$a_ndisks" ]; do
				disk "$n"
				free=$(space "${leaf%/*}")
				if [ "${free:-$opt_reserve}" -lt "$opt_reserve" ]; then
					: >"$tmp/full"
					stop_sending
				fi
				n=$((n + 1))
			done
			sleep 1
		done
	) </dev/null >/dev/null 8>&- &
	watcher=$!
	remember_child "$watcher"
}
watcher=''

stop_watching() {
	[ -n "$watcher" ] || return 0
	kill "$watcher" 2>/dev/null
	wait "$watcher" 2>/dev/null
	watcher=''
}

# ---- stage ----

# The VM's definition waits at the destination, pending, before the guest is paused for it.
stage_vm() {
	must_status
	case $v_owner/$v_state in
	owner/running | owner/paused | owner/off) ;;
	*) rollback "$opt_vm is $v_state now, its record is \"$v_owner\"" ;;
	esac
	case $a_was/$v_state in
	off/running | off/paused) rollback "$opt_vm was started meanwhile" ;;
	esac
	mode=$v_state
	begin_stage stage
	list_layers
	vm-export --hypervisor="$opt_hypervisor" -- "$opt_vm" >"$tmp/vm.xml" || rollback "vm-export cannot describe $opt_vm"
	list_targets
	expect=0
	[ -z "$far_local" ] || expect=$v_starts
	{
		eval "far_call d_stage $mode $expect $a_ndisks $targets $opt_networks"
		cat -- "$tmp/vm.xml"
	} >"$tmp/staged"
	far_run <"$tmp/staged" || rollback "$far_host does not take the VM (status $?)"
	end_stage 0
}
mode=off

# The files from each leaf down to the base, as JSON strings: for the end, when the leaves are elsewhere.
list_layers() {
	n=0
	while [ "$n" -lt "$a_ndisks" ]; do
		disk "$n"
		vhd-info --json --chain --unlocked -- "$leaf" >"$tmp/info" || rollback "disk $target: $leaf cannot be read"
		jq -c --arg b "$base" '.files[0].chain | map(.file)
			| .[:(index($b) // error("the base is not in the chain")) + 1][]' "$tmp/info" ||
			rollback "disk $target: $leaf does not stand on $base"
		n=$((n + 1))
	done >"$tmp/layers"
	store "$job/layers" <"$tmp/layers"
}

# A guest that an interrupted run left standing goes on first: the time until now is not made longer than
# it must be, and what is saved is always the last thing that it did.
wake_source() {
	[ -n "$j_pausing" ] || return 0
	case $v_state in
	saved | paused)
		if [ "$v_state" = saved ] || [ "$a_was" = running ]; then
			hv resume -- "$opt_vm" ||
				die 81 "$opt_vm stands still here and does not go on: hv-$opt_hypervisor resume $opt_vm"
			[ "$a_was" = running ] || hv pause -- "$opt_vm"
		fi
		must_status
		;;
	esac
	note running
	j_pausing=''
}

# ---- save and delta ----

# The guest stands still. Its state goes straight to the destination, and its last writes, which are in the
# AVHDs, at the same time; the paused guest stays here until the commit.
save() {
	stage=save
	if [ "$mode" != off ]; then
		boot=$(cat /proc/sys/kernel/random/boot_id)
		clock
		note pausing "$boot" "$now" "$(date +%s)"
		j_pausing="$boot $now $(date +%s)"
		[ "$mode" = paused ] || hv pause -- "$opt_vm" || rollback "$opt_vm cannot be paused"
		freeze
	fi
	clock
	stage_from=$now children=''
	start_deltas
	if [ "$mode" != off ]; then
		far_call d_recv_state >"$tmp/state.call"
		send_state 8>&- &
		children="$children $!"
	fi
	for d in $children; do
		wait_child "$d"
	done
	judge_deltas
	[ "$mode" = off ] || judge_state
}

# One more AVHD frees the last ones from their server's lock, and staying empty it proves that nothing
# was written since.
freeze() {
	snapshot || rollback "the last AVHDs could not be frozen"
	n=0
	while [ "$n" -lt "$a_ndisks" ]; do
		eval "top=\$top_$n"
		eval "empty_$n=\$(wc -c <\"\$top\")"
		jq -cn --arg f "$top" '$f' >>"$job/layers"
		n=$((n + 1))
	done
}
top=''

# Nothing at all was written to this AVHD: without a checkpoint there is none, the disk was off.
start_deltas() {
	i=0
	while [ "$i" -lt "$a_ndisks" ]; do
		disk "$i"
		if [ "$leaf" != "$base" ]; then
			send_disk "delta$i" d_recv_delta "$target" --from="$base" -- "$leaf"
			children="$children $child"
		fi
		i=$((i + 1))
	done
}

send_state() {
	{
		cat -- "$tmp/state.call"
		hv save -- "$opt_vm" - 3>"$tmp/state.sent"
		echo $? >"$tmp/state.status"
	} | {
		far_run >"$tmp/state.got"
		echo $? >"$tmp/state.far"
	}
	clock
	echo "$now" >"$tmp/state.end"
}

judge_state() {
	stage=save
	read -r send_status <"$tmp/state.status" || send_status=70
	read -r far_status <"$tmp/state.far" || far_status=255
	[ "$send_status" -eq 0 ] ||
		rollback "the guest's state was not saved (status $send_status, $far_host: $far_status)"
	[ "$far_status" -eq 0 ] || rollback "the guest's state did not arrive at $far_host (status $far_status)"
	have=$(jq -r '"\(.bytes) \(.xxh128)"' "$tmp/state.sent")
	read -r arrived <"$tmp/state.got" || arrived=''
	[ "$have" = "$arrived" ] || rollback "the guest's state arrived damaged: $arrived, not $have"
	read -r now <"$tmp/state.end"
	took save "${have%% *}" $((now - stage_from))
}

judge_deltas() {
	stage='delta'
	i=0 total=0 merged=0 merge_time=0 last=$stage_from
	while [ "$i" -lt "$a_ndisks" ]; do
		disk "$i"
		if [ "$leaf" != "$base" ]; then
			judge_send "delta$i" || rollback "${failure:-interrupted}"
			total=$((total + sent))
			jq -rs '"\(.[1].bytes) \(.[2].hundredths)"' "$tmp/delta$i.got" >"$tmp/line"
			read -r d rest <"$tmp/line"
			merged=$((merged + d))
			[ "$rest" -le "$merge_time" ] || merge_time=$rest
			read -r now <"$tmp/delta$i.end"
			[ "$now" -le "$last" ] || last=$now
		fi
		i=$((i + 1))
	done
	[ "$last" -gt "$stage_from" ] || return 0
	[ "$merge_time" -le $((last - stage_from)) ] || merge_time=$((last - stage_from))
	took delta "$total" $((last - stage_from - merge_time))
	took merge "$merged" "$merge_time"
}

# ---- commit ----

commit() {
	[ -z "$interrupted" ] || rollback "interrupted"
	begin_stage commit
	untouched || rollback "$opt_vm was written to after it was saved"
	# From here on a signal changes nothing any more.
	trap '' INT TERM HUP
	note yielding "$mode" "$v_starts"
	if [ -n "$far_local" ]; then
		commit_local
	else
		hv yield --to="$(printf '%s' "$dest" | tr '\n' '?')" --token="$a_token" --starts="$v_starts" -- "$opt_vm" || {
			must_status
			[ "$v_owner/$v_token" = "moved/$a_token" ] ||
				rollback "$opt_vm is not given away: it was started, or runs again"
		}
	fi
	note yielded "$mode"
	j_yielded=1
	end_stage 0
}

untouched() {
	[ "$mode" != off ] || return 0
	n=0
	while [ "$n" -lt "$a_ndisks" ]; do
		eval "top=\$top_$n size=\$empty_$n"
		[ "$(wc -c <"$top")" -eq "$size" ] || return 1
		n=$((n + 1))
	done
}

# On one host the owner stays; what changes, by one rename, is where its disks are. The guest lives
# in its saved state meanwhile.
commit_local() {
	hv stop --force -- "$opt_vm" || rollback "$opt_vm could not be stopped here"
	list_targets
	eval "set -- $targets"
	for d; do
		shift
		set -- "$@" "$d=$far_dir/$far_name/$d.vhd"
	done
	hv switch --token="$a_token" -- "$opt_vm" "$@" || rollback "the disks of $opt_vm could not be switched"
}

# Whether a run that ended while it committed had done so.
look_for_commit() {
	[ -n "$j_yielding" ] && [ -z "$j_yielded" ] || return 0
	if [ -z "$far_local" ]; then
		[ "$v_owner/$v_token" = "moved/$a_token" ] || return 0
	else
		disk 0
		case $leaf in
		"$(readlink -f -- "$far_dir/$far_name")"/*) ;;
		*) return 0 ;;
		esac
	fi
	note yielded "$(yield_mode)"
	j_yielded=1
}

# In which state the VM was given away.
yield_mode() {
	awk '$2 == "yielding" && $NF == "." { m = $3 } END { print m }' "$job/journal"
}

# ---- resume ----

# The destination does the rest on its own once it has heard of the commit; here it is only told, again
# and again if need be.
arrive() {
	[ -z "$j_resumed" ] || return 0
	trap '' INT TERM HUP
	mode=$(yield_mode)
	begin_stage resume
	far_insist d_arrive "$mode" >"$tmp/arrived"
	arrive_status=$?
	woken=''
	while read -r word d; do
		case $word in
		resumed) woken=$d ;;
		esac
	done <"$tmp/arrived"
	if [ "$arrive_status" -ne 0 ] || [ -z "$woken" ]; then
		doubt
	fi
	offline_time
	note resumed "$offline" "$woken"
	j_resumed="$offline $woken"
	end_stage 0
	if [ "$woken" != "$mode" ]; then
		warn "$opt_vm is $woken at $far_host; it was $mode here"
	fi
}

# Hundredths of a second from the pause until now, also over the death of a run or of the host.
offline_time() {
	offline=0
	[ "$mode" = running ] && [ -n "$j_pausing" ] || return 0
	# shellcheck disable=SC2086
	set -- $j_pausing
	clock
	if [ "$1" = "$(cat /proc/sys/kernel/random/boot_id)" ]; then
		offline=$((now - $2))
	else
		offline=$((($(date +%s) - $3) * 100))
	fi
}
offline=0

# ---- finish ----

finish() {
	begin_stage finish
	if [ -z "$far_local" ] && status && [ "$v_owner" = moved ]; then
		case $v_state in
		off) ;;
		*) hv stop --force -- "$opt_vm" || warn "the paused guest of $opt_vm could not be ended here: hv-$opt_hypervisor stop --force $opt_vm" ;;
		esac
	fi
	far_insist d_finish || die 75 "$opt_vm has moved and runs, but $far_host cannot be reached to clean up; the same command does it"
	delete_source
	end_stage 0
	note finished
	report
}

# The disks that the VM had here: what it stood on when the move began, and the AVHDs since. Parents below
# that may be other VMs' too, and stay.
delete_source() {
	eval "set -- $(jq -rs 'map(@sh) | join(" ")' "$job/layers")"
	if [ -z "$opt_delete" ]; then
		kept=''
		for d; do
			[ ! -e "$d" ] || kept="$kept $d"
		done
		[ -z "$kept" ] || say "the disks here stay until they are deleted (--delete-source):$kept"
		return 0
	fi
	for d; do
		rm -f -- "$d" || warn "cannot delete $d"
	done
	if [ -z "$far_local" ] && status && [ "$v_owner" = moved ]; then
		hv undefine -- "$opt_vm" || warn "$opt_vm is still defined here: hv-$opt_hypervisor undefine $opt_vm"
	fi
	note deleted
}

# ---- the report ----

# The stages in their order, with the sums over all runs: NAME BYTES HUNDREDTHS a line.
sum_stages() {
	printf '%s' "$j_stages" | awk '
		!($1 in b) { name[++n] = $1 }
		{ b[$1] += $2; t[$1] += $3 }
		END { for (i = 1; i <= n; i++) printf "%s %.0f %d\n", name[i], b[name[i]], t[name[i]] }'
}

report_json() {
	sum_stages | jq -Rn --arg vm "$opt_vm" --arg uuid "$v_uuid" --arg dest "$dest" --arg name "$a_name" \
		--arg state "${j_resumed##* }" --argjson offline "$offline" '
		{version: 1, ok: true, result: "moved", vm: $vm, uuid: $uuid, destination: $dest, name: $name,
		 state: $state, offline_seconds: ($offline / 100),
		 stages: [inputs | split(" ") | (.[1] | tonumber) as $b | (.[2] | tonumber / 100) as $s
			| {stage: .[0], bytes: $b, seconds: $s,
			   rate: (if $b > 0 and $s > 0 then ($b / $s | floor) else null end)}]}
		| .bytes = ([.stages[].bytes] | add)'
}

report() {
	offline=${j_resumed%% *}
	if [ -n "$opt_report" ]; then
		report_json >"$opt_report" || warn "cannot write $opt_report"
	fi
	if [ -n "$opt_json" ]; then
		report_json
		opt_json=''
		return 0
	fi
	printf '%-12s %15s %9s %14s\n' stage bytes seconds rate
	sum_stages | while read -r row bytes hundredths; do
		rate=-
		if [ "$bytes" -gt 0 ] && [ "$hundredths" -gt 0 ]; then
			rate="$(human $((bytes * 100 / hundredths)))/s"
		fi
		printf '%-12s %15d %9s %14s\n' "$row" "$bytes" "$(seconds "$hundredths")" "$rate"
	done
	printf '%s is at %s, %s; offline_seconds=%s\n' "$opt_vm" "$dest" "${j_resumed##* }" "$(seconds "$offline")"
}

# What is said with --json when there is no report.
failure_json() {
	jq -n --arg vm "$opt_vm" --arg uuid "$v_uuid" --arg dest "$dest" --arg stage "$stage" \
		--arg message "$result_message" --argjson code "$1" --arg state "$v_state" '
		{version: 1, ok: false, exit: $code,
		 result: ({"75": "resumable", "78": "refused", "80": "rolled back", "81": "in doubt"}[$code | tostring] // "failed"),
		 vm: $vm, uuid: $uuid, destination: $dest, stage: $stage, state: $state, message: $message}'
}
result_message=''

# ---- what can go wrong ----

# The job stays as it is, and so does the VM: on its AVHDs, if it is running.
resumable() { # WHY
	stop_watching
	die 75 "$stage: $1. $opt_vm is $v_state here${j_checkpoint:+, on its checkpoint}; the same command goes on from here, with --abort it takes the move back"
}

# Before the commit: durably no, then the guest goes on here, then the other side is tidied up.
rollback() { # WHY
	trap '' INT TERM HUP
	stop_watching
	warn "$stage: $1"
	note aborted
	revive
	tidy_far || warn "what was copied is still at $dest; this command with --abort removes it when $far_host answers"
	where_it_stands
	die 80 "$opt_vm is not moved and is $v_state here${stands:+; $stands}"
}

# The guest is again as it was found.
revive() {
	must_status
	case $v_owner in
	owner) ;;
	*) die 81 "$opt_vm: its record here is \"$v_owner\", so it does not go on here" ;;
	esac
	if [ -n "$far_local" ] && [ "$v_state" = off ] && [ -n "$j_yielding" ]; then
		[ "$(yield_mode)" = off ] || far d_revive "$(yield_mode)" >/dev/null ||
			die 81 "$opt_vm was saved and does not go on; its state is $far_dir/$far_name/.qsm/state"
	elif [ -n "$j_pausing" ] && [ "$a_was" = running ]; then
		case $v_state in
		paused | saved)
			hv resume -- "$opt_vm" || hv resume -- "$opt_vm" ||
				die 81 "$opt_vm stands still here and does not go on: hv-$opt_hypervisor resume $opt_vm"
			;;
		esac
	fi
	must_status
	if [ -n "$j_pausing" ] && [ "$a_was" = running ]; then
		case $v_state in
		running) ;;
		*) warn "$opt_vm was running and is $v_state now" ;;
		esac
		note running
		j_pausing=''
	fi
}

tidy_far() {
	list_targets
	eval "far d_undo $targets" || return
	note rolledback
}

where_it_stands() {
	stands='' n=0
	while [ "$n" -lt "$a_ndisks" ]; do
		disk "$n"
		[ "$leaf" = "$base" ] || stands="$stands, disk $target on $leaf above $base"
		n=$((n + 1))
	done
	stands=${stands#, }
}

# After the commit, without an answer that the guest goes on.
doubt() {
	quote "$opt_vm"
	if [ -n "$far_local" ]; then
		die 81 "$opt_vm is saved in $far_dir/$far_name/.qsm/state, its disks are in $far_dir/$far_name, and it does not go on (status $arrive_status). When what stands above is mended, the same command goes on"
	fi
	warn "$opt_vm belongs to $far_host since the commit, and ${far_host} $(if cut_off "$arrive_status"; then echo "does not answer"; else echo "failed with status $arrive_status"; fi). It is paused here, and must not run at both."
	warn "The same command goes on when $far_host is there again."
	warn "To take it back: the same command with --settle=source (and --i-fenced-the-other if $far_host is off and stays off)."
	warn "If this host is lost: on $far_host, qsm-pipeline.sh --settle=destination --i-fenced-the-other $quoted $far_dir"
	die 81 "$opt_vm: not known to run anywhere"
}

# ---- --abort, --settle ----

abort_move() {
	stage=abort
	if [ -z "$j_open" ]; then
		say "no move of $opt_vm to $dest is under way"
		exit 0
	fi
	look_for_commit
	if [ -n "$j_yielded" ]; then
		die 81 "$opt_vm belongs to $far_host since the commit: --abort comes too late; the same command without it goes on, --settle=source takes it back"
	fi
	rollback "taken back on demand"
}

# The same command after the commit, when a person decides.
settle() {
	stage=settle
	if [ "$opt_settle" = destination ]; then
		case $v_owner in
		pending) settle_here ;;
		*) [ -n "$j_open" ] || die 64 "no move of $opt_vm to $dest waits to be settled" ;;
		esac
		return
	fi
	look_for_commit
	if [ -z "$j_open" ] || [ -z "$j_yielded" ] || [ -n "$far_local" ]; then
		die 64 "no committed move of $opt_vm to $dest waits to be settled"
	fi
	[ -z "$j_resumed" ] || die 81 "$opt_vm runs at $far_host: it cannot be taken back"
	far d_refuse
	d=$?
	if cut_off "$d"; then
		[ -n "$opt_fenced" ] ||
			die 81 "$far_host does not answer: only if it is off and stays off, add --i-fenced-the-other"
	elif [ "$d" -ne 0 ] && [ "$d" -ne 66 ]; then
		die 81 "$far_host does not give $opt_vm back (status $d)"
	fi
	hv reclaim --token="$a_token" -- "$opt_vm" || die 81 "$opt_vm cannot be taken back here"
	note settled source
	revive
	tidy_far || warn "what was copied is still at $dest"
	say "$opt_vm is this host's again, and $v_state"
	exit 0
}

# On the destination, when the source is lost: the VM is complete here, only the word was missing.
settle_here() {
	[ -n "$far_local" ] || die 64 "$opt_vm has arrived here: name its folder, not a host"
	[ -n "$opt_fenced" ] ||
		die 81 "$opt_vm may still run where it came from: only if that host is off and stays off, add --i-fenced-the-other"
	far_token=$v_token far_local='' far_name=$opt_vm
	far_here=1
	far d_arrive '' >/dev/null || die 81 "$opt_vm does not go on here (status $?)"
	far d_finish || warn "$far_dir/$far_name/.qsm is still there"
	must_status
	say "$opt_vm is this host's, and $v_state"
	exit 0
}
far_here=''

# ---- main ----

finished_before() {
	[ -n "$j_finished" ] || return 1
	if [ -n "$far_local" ]; then
		disk 0
		case $leaf in
		"$(readlink -f -- "$far_dir/$far_name")"/*) ;;
		*) return 1 ;;
		esac
	else
		case $v_owner/$v_token in
		none/* | moved/"$a_token") ;;
		*) return 1 ;;
		esac
	fi
	[ -z "$opt_delete" ] || [ -n "$j_deleted" ] || delete_source
	say "the move of $opt_vm to $dest is finished already"
	report
}

# The stages up to the commit; whatever fails in one of them does not come back.
go() {
	wake_source
	checkpoint
	copy
	[ -z "$interrupted" ] || resumable "interrupted"
	stage_vm
	save
	commit
}

move() {
	! finished_before || return 0
	if [ -n "$j_open" ]; then
		stage=resume
		look_for_commit
		if [ -n "$j_aborted" ] && [ -z "$j_yielded" ]; then
			revive
			tidy_far || die 75 "what an earlier attempt left at $dest is still there, $far_host does not answer"
			j_open=''
		elif [ -z "$j_yielded" ]; then
			say "going on with the move of $opt_vm to $dest"
		fi
	fi
	if [ -z "$j_open" ]; then
		stage=preflight
		preflight
		[ ! -s "$tmp/blockers" ] || refuse
		new_attempt
		end_stage 0
	fi
	[ -n "$j_yielded" ] || go
	arrive
	finish
}

clean_up() {
	code=$?
	trap '' INT TERM HUP
	trap - EXIT
	stop_watching
	stop_sending
	[ -z "$opt_json" ] || [ "$code" -eq 0 ] || failure_json "$code"
	[ -z "$tmp" ] || rm -rf -- "$tmp"
	exit "$code"
}
tmp='' interrupted='' job=''

interrupt() {
	interrupted=1
	warn "interrupted"
	stop_sending
}

only=''
for arg; do
	case $only$arg in
	--) only=x ;;
	-?*) option "$arg" ;;
	*)
		if [ -z "$opt_vm" ]; then
			opt_vm=$arg
		elif [ -z "$opt_dest" ]; then
			opt_dest=$arg
		else
			misuse "$arg: one VM and one destination are wanted"
		fi
		;;
	esac
done
[ -n "$opt_dest" ] || misuse "a VM and a destination are wanted"
destination "$opt_dest"
check_options
set_places
trap clean_up EXIT
trap interrupt INT TERM HUP
find_job
if [ -n "$opt_plan" ]; then
	tmp=$(mktemp -d) || die 73 "cannot make a temporary folder"
	preflight
	show_plan
fi
tmp=$state_dir/$v_uuid.tmp
open_job
if [ -n "$opt_abort" ]; then
	abort_move
fi
[ -z "$opt_settle" ] || settle
move
