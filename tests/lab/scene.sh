# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=sh
#
# Two hosts and a guest that writes, for the demonstration and the end-to-end tests; to be sourced.
# $scene_tools is tests/lab, $scene the folder of everything, the VM is called `guest` and has two
# disks: vda (records) and vdb (ext4), on host a below /srv/vms. Its folder on b is /srv/arrived.

: "${scene_tools:?}" "${scene:=}"
scene_log_a=
scene_log_b=

scene_hosts() {
	"$scene_tools/hosts" -C "$scene" "$@"
}

# What is below /srv, /run, … of a host, as the host names it and as it is named here.
scene_path() { # HOST PATH: as the host names it
	if [ -e "$scene/local" ]; then
		echo "$scene/$1$2"
	else
		echo "$2"
	fi
}

# scene_up [--local] [--rate=…]
scene_up() {
	"$scene_tools/hosts" up "$@" "$scene" || return
	"$scene_tools/guest" build "$scene/boot" >/dev/null
}

# scene_guest [SIZE [FILL [FSSIZE [APPEND]]]]: the disks and the VM, not started
scene_guest() {
	scene_append=${4:-qsm.rate=200}
	mkdir -p "$scene/raw" "$scene/a/srv/vms" "$scene/b/srv/arrived"
	"$scene_tools/guest" disks "$scene/raw" "${1:-256M}" "${2:-32M}" "${3:-128M}" || return
	for t in vda vdb; do
		vhd-convert --quiet --from=raw --type=dynamic "$scene/raw/$t.raw" "$scene/a/srv/vms/$t.vhd" || return
	done
	rm -rf "$scene/raw"
	scene_uuid=$(cat /proc/sys/kernel/random/uuid)
	scene_log_a=$scene/a/run/qsm/$scene_uuid/console.log
	scene_log_b=$scene/b/run/qsm/$scene_uuid/console.log
	"$scene_tools/guest" domain --uuid="$scene_uuid" --network=blue --append="$scene_append" guest "$scene/boot" \
		"vda=$(scene_path a /srv/vms/vda.vhd)" "vdb=$(scene_path a /srv/vms/vdb.vhd)" >"$scene/guest.xml"
	scene_hosts exec a hv-qemu --quiet define "$scene/guest.xml"
}

scene_start() {
	scene_hosts exec a hv-qemu --quiet start guest || return
	scene_acks a 50
}

# scene_acks HOST COUNT: waits until the guest was told so many times more that a record is safe
scene_acks() {
	"$scene_tools/guestcheck" wait --new --timeout=300 "$scene/$1/run/qsm/$scene_uuid/console.log" ACK "$2"
}

# scene_move [OPTIONS]: from a to b
scene_move() {
	QSM_LAB=$scene "$scene_tools/hosts" exec a qsm-pipeline.sh --ssh="$(scene_hosts ssh)" --network=blue=green \
		"$@" guest "hostb:$(scene_path b /srv/arrived)"
}

# scene_state HOST [JQ]: of the VM, e.g. `.state`
scene_state() {
	scene_hosts exec "$1" hv-qemu status --json guest | jq -r "${2:-.state}"
}

# scene_leaf HOST TARGET: path of the leaf, as it is named here
scene_leaf() {
	leaf=$(scene_state "$1" ".disks[] | select(.target == \"$2\") | .leaf")
	case $leaf in
	"$scene"/*) echo "$leaf" ;;
	*) echo "$scene/$1$leaf" ;;
	esac
}

# scene_check HOST: after the guest ended there: nothing that was acknowledged is missing. Prints
# guestcheck's lines; the logs of both hosts count in the order in which the guest was there.
scene_check() {
	rm -rf "$scene/check"
	mkdir -p "$scene/check"
	# The model reads the chains: a mistake that the tools share would not show otherwise.
	vda=$(scene_leaf "$1" vda)
	vdb=$(scene_leaf "$1" vdb)
	"$scene_tools/../model/vhdmodel.py" cat --out="$scene/check/vdb.raw" "$vdb" || return
	e2fsck -fn "$scene/check/vdb.raw" >"$scene/check/e2fsck.log" 2>&1 || {
		cat "$scene/check/e2fsck.log" >&2
		return 1
	}
	debugfs -R "rdump /files $scene/check" "$scene/check/vdb.raw" >"$scene/check/debugfs.log" 2>&1
	set --
	for log in "$scene_log_a" "$scene_log_b"; do
		[ ! -e "$log" ] || set -- "$@" --console "$log"
	done
	"$scene_tools/guestcheck" check "$@" --files="$scene/check/files" "$vda"
}

scene_down() {
	[ ! -d "$scene/a" ] || scene_hosts down
}
