# SPDX-License-Identifier: BSD-2-Clause
# The two hosts that the end-to-end tests run on.
load helper

setup() {
	hosts=$top/tests/lab/hosts
	lab=$BATS_TEST_TMPDIR/lab
	export QSM_LAB=$lab
}

teardown() {
	for l in "$lab" "$lab.2"; do
		if [ -d "$l" ]; then
			"$hosts" -C "$l" down
		fi
	done
}

@test "a host reaches the other one with ssh, and has its own name and folders" {
	needs_root
	"$hosts" up "$lab"
	"$hosts" exec b touch /srv/here /root/here /run/here /var/lib/qsm/here
	run "$hosts" exec a ssh -o BatchMode=yes hostb 'hostname; ls /srv /root /run/here /var/lib/qsm /etc/qsm/networks'
	assert_status 0
	assert_output_has hostb
	assert_output_has green
	run "$hosts" exec a sh -c 'ls /srv/here /root/here /run/here /var/lib/qsm/here'
	[ "$status" -ne 0 ]
	[ -e "$lab/b/srv/here" ]
}

@test "two labs do not meet" {
	needs_root
	"$hosts" up "$lab"
	"$hosts" up "$lab.2"
	"$hosts" exec a touch /srv/first
	run "$hosts" -C "$lab.2" exec b ssh -o BatchMode=yes hosta 'ls /srv; hostname'
	assert_status 0
	[ "$output" = hosta ]
}

@test "a cut link loses what is sent, and restored it carries again" {
	needs_root
	"$hosts" up "$lab"
	"$hosts" link cut
	run "$hosts" exec a ssh -o BatchMode=yes -o ConnectTimeout=1 hostb true
	assert_status 255
	"$hosts" link restore
	run "$hosts" exec a ssh -o BatchMode=yes -o ConnectTimeout=60 hostb true
	assert_status 0
}

@test "a crash ends everything on the host, and it boots with an empty /run" {
	needs_root
	"$hosts" up "$lab"
	# By its own number: other labs have one, too.
	"$hosts" exec b sh -c "touch /run/flag /srv/kept; sleep 9876$$ >/dev/null 2>&1 &"
	pgrep -f "sleep 9876$$"
	"$hosts" crash b
	run pgrep -f "sleep 9876$$"
	[ "$status" -ne 0 ]
	"$hosts" boot b
	run "$hosts" exec a ssh -o BatchMode=yes hostb 'ls /run/flag /srv/kept'
	assert_output_has "/srv/kept"
	[[ "$output" != */run/flag$'\n'* ]]
}

@test "nothing is left after down" {
	needs_root
	"$hosts" up "$lab"
	"$hosts" down
	run grep -c "$lab" /proc/self/mounts
	[ "$output" = 0 ]
	run pgrep -f "$lab"
	[ "$status" -ne 0 ]
}

@test "local hosts: exit status, standard input and environment come through" {
	"$hosts" up --local "$lab"
	ssh=$("$hosts" ssh)
	run "$ssh" -o BatchMode=yes -p 22 root@hostb 'exit 7'
	assert_status 7
	run bash -c "echo 'echo \$QSM_VM_DIR' | '$ssh' hostb sh -s"
	[ "$output" = "$lab/b/var/vms" ]
	run "$ssh" nobody true
	assert_status 255
}

@test "local hosts: a cut ends a running connection" {
	"$hosts" up --local "$lab"
	ssh=$("$hosts" ssh)
	"$ssh" hostb 'sleep 600' 3>&- &
	pid=$!
	wait_for test -s "$lab/conn.$pid"
	"$hosts" link cut
	SECONDS=0
	status=0
	wait "$pid" || status=$?
	assert_status 255
	[ "$SECONDS" -lt 300 ] || fail "the connection lived on for $SECONDS s"
	run "$ssh" hostb true
	assert_status 255
	"$hosts" link restore
	"$ssh" hostb true
}
