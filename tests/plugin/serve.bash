# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=bash disable=SC2034,SC2154 # variables of bats, of helper.bash and of the tests
# For the tests of the plugin: servers that are started, killed and cleaned away.

model=$top/tests/model/vhdmodel.py
guest=$top/tests/plugin/guest.py
nbdkit_options=()
preload=

# In its own folder, so that nothing lies about that a parent search could find.
disks_setup() {
	d=$BATS_TEST_TMPDIR/d
	s=$BATS_TEST_TMPDIR/s
	mkdir "$d" "$s"
}

# serve NAME PARAMETER…: sockets $s/NAME.nbd and $s/NAME.ctl, messages in $s/NAME.err.
serve() {
	local name=$1
	shift
	rm -f "$s/$name.pid" "$s/$name.nbd"
	env ${preload:+LD_PRELOAD="$preload"} nbdkit -f -P "$s/$name.pid" -U "$s/$name.nbd" \
		"${nbdkit_options[@]}" "$QSM_PLUGIN" control="$s/$name.ctl" "$@" \
		>"$s/$name.err" 2>&1 3>&- &
	wait_for server_settled "$name" $!
	[ -s "$s/$name.pid" ] || {
		cat "$s/$name.err" >&2
		return 1
	}
}

# Serving, or given up.
server_settled() {
	[ -s "$s/$1.pid" ] || ! kill -0 "$2" 2>/dev/null
}

# The same for a server that must refuse: its message becomes $output. The time limit is for builds
# with sanitizers, where nbdkit (any plugin) may hang when it exits after an error: libasan's start inside
# p11-kit's newlocale() leaves a lock of libc's in disorder.
run_refused() {
	run timeout 20 nbdkit -f -U - "${nbdkit_options[@]}" "$QSM_PLUGIN" "$@" --run true 3>&-
	[ "$status" -ne 0 ] || fail "the server was started"
}

# The guest of server `a` has begun.
guest_writes() {
	[ -n "$(find "$d" -newer "$s/a.nbd" -type f)" ]
}

server_gone() {
	! kill -0 "$1" 2>/dev/null
}

# end_server NAME [SIGNAL]
end_server() {
	local pid
	pid=$(cat "$s/$1.pid")
	kill "-${2:-TERM}" "$pid" 2>/dev/null || : # it may be dead already
	wait_for server_gone "$pid"
	wait "$pid" 2>/dev/null || :
	rm -f "$s/$1.pid"
}

end_servers() {
	local f
	for f in "$s"/*.pid; do
		[ ! -s "$f" ] || kill -9 "$(cat "$f")" 2>/dev/null || :
	done
}

# control NAME LINE…: the lines on one connection, replies on stdout.
control() {
	local name=$1
	shift
	printf '%s\n' "$@" | socat -t 120 - "UNIX-CONNECT:$s/$name.ctl"
}

# pointer NAME LEAF: what a VM's disk is opened through.
pointer() {
	ln -s "$2" "$d/$1"
}

# uri NAME
uri() {
	echo "nbd+unix:///?socket=$s/$1.nbd"
}

# A dynamic disk of SIZE with random content, its raw twin beside it: disk_with_data NAME SIZE [BLOCK]
disk_with_data() {
	"$model" make "$d/$1" --size "$2" --block "${3:-2M}" --fill 150:4096 --raw "$d/$1.raw"
}
