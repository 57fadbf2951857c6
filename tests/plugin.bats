#!/usr/bin/env bats
# SPDX-License-Identifier: BSD-2-Clause
# The nbdkit plugin: what it serves, to whom, and its control socket.

load helper
load plugin/serve

setup() {
	disks_setup
}

teardown() {
	end_servers
	! mountpoint -q "$d/small" || umount -l "$d/small"
}

# Random requests of eight connections against the model, then the file itself against it.
model_run() {
	"$guest" model "$s/a.nbd" "$1" --ops "${2:-150}" --seed "$BATS_TEST_NUMBER"
	end_server a
	"$model" cat "$d/leaf" --out="$s/after.raw"
	cmp "$s/after.raw" "$1"
}

@test "a chain is served as the model reads it" {
	disk_with_data base.vhd 16M
	"$model" make "$d/leaf" --parent "$d/base.vhd" --fill 100:4096
	"$model" cat "$d/leaf" --out="$s/want.raw"
	serve a file="$d/leaf"
	nbdcopy "$(uri a)" "$s/got.raw"
	cmp "$s/got.raw" "$s/want.raw"
}

@test "random requests on a dynamic disk agree with the model" {
	disk_with_data leaf 24M
	serve a file="$d/leaf"
	model_run "$d/leaf.raw"
}

@test "random requests on a child of a child agree with the model, and its parents do not change" {
	disk_with_data base.vhd 24M
	"$model" make "$d/middle.avhd" --parent "$d/base.vhd" --fill 100:4096
	vhd-snap -q --output="$d/leaf" "$d/middle.avhd"
	"$model" cat "$d/leaf" --out="$s/raw"
	sum=$(cat "$d/base.vhd" "$d/middle.avhd" | sha256sum)
	serve a file="$d/leaf"
	model_run "$s/raw"
	[ "$(cat "$d/base.vhd" "$d/middle.avhd" | sha256sum)" = "$sum" ]
}

@test "random requests on blocks of 512 KiB agree with the model" {
	disk_with_data base.vhd 12M 512K
	"$model" make "$d/leaf" --parent "$d/base.vhd" --block 512K --fill 40:512
	"$model" cat "$d/leaf" --out="$s/raw"
	serve a file="$d/leaf"
	model_run "$s/raw"
}

@test "random requests on a fixed disk agree with the model" {
	vhd-create --type=fixed --size=8M "$d/leaf"
	truncate -s 8M "$s/raw"
	serve a file="$d/leaf"
	model_run "$s/raw"
}

@test "an unaligned old disk is written as well" {
	"$model" make "$d/leaf" --size 9M --align 512 --creator vpc --fill 60:4096 --raw "$s/raw"
	serve a file="$d/leaf"
	model_run "$s/raw"
}

@test "what the server can do is told to the client" {
	vhd-create --size=8M "$d/leaf"
	serve a file="$d/leaf"
	run nbdinfo --json "$(uri a)"
	assert_status 0
	jq -e '.exports[0] | .["export-size"] == 8388608 and .can_multi_conn and .can_fua and
		.can_flush and .can_trim and .can_zero and .can_fast_zero and
		(.is_read_only | not) and .block_size_minimum == 512 and
		.block_size_preferred == 4096 and .block_size_maximum >= 1048576' <<<"$output"
}

@test "extents show what is allocated in any layer" {
	vhd-create --size=8M "$d/base.vhd"
	serve a file="$d/base.vhd"
	qemu-io -f raw -c 'write -P 1 2M 64k' "$(uri a)" >&2
	end_server a
	vhd-snap -q --output="$d/leaf" "$d/base.vhd"
	serve a file="$d/leaf"
	qemu-io -f raw -c 'write -P 2 4M 64k' -c 'write -z 2M 32k' "$(uri a)" >&2
	run nbdinfo --map --json "$(uri a)"
	want='[[0,2129920,3],[2129920,32768,0],[2162688,2031616,3],[4194304,65536,0],[4259840,4128768,3]]'
	[ "$(jq -c 'map([.offset,.length,.type])' <<<"$output")" = "$want" ] || fail "wrong map"
}

@test "zeros hide the parent" {
	disk_with_data base.vhd 8M
	vhd-snap -q --output="$d/leaf" "$d/base.vhd"
	serve a file="$d/leaf"
	qemu-io -f raw -c 'write -z 0 8M' -c 'read -P 0 0 8M' "$(uri a)" | tee /dev/stderr | grep -q 'read 8388608'
	end_server a
	"$model" cat "$d/leaf" | cmp -n 8388608 - /dev/zero
}

@test "qemu-img reads the same disk" {
	disk_with_data base.vhd 12M
	"$model" make "$d/leaf" --parent "$d/base.vhd" --fill 100:4096
	"$model" cat "$d/leaf" --out="$s/want.raw"
	serve a file="$d/leaf"
	qemu-img compare -f raw -F raw "$s/want.raw" "$(uri a)"
}

@test "a request that is not aligned to 512 bytes changes nothing and is refused" {
	vhd-create --size=8M "$d/leaf"
	serve a file="$d/leaf"
	/usr/bin/python3 - "$s/a.nbd" <<-'PY'
		import errno, nbd, sys
		h = nbd.NBD()
		h.set_strict_mode(0)
		h.connect_unix(sys.argv[1])
		for call in (lambda: h.pwrite(b'x' * 100, 0), lambda: h.pwrite(b'x' * 512, 7),
			     lambda: h.zero(100, 0), lambda: h.trim(512, 1)):
		    try:
		        call()
		        sys.exit('accepted')
		    except nbd.Error as e:
		        assert e.errnum == errno.EINVAL, e
		assert h.pread(1024, 0) == bytes(1024)
		assert h.pread(100, 333) == bytes(100)
	PY
}

@test "a full file system is reported as such, and after it was mended all goes on" {
	needs_root
	mkdir "$d/small"
	mount -t tmpfs -o size=6m none "$d/small"
	vhd-create --size=64M "$d/small/leaf"
	serve a file="$d/small/leaf"
	/usr/bin/python3 - "$s/a.nbd" "$d/small" <<-'PY'
		import errno, nbd, os, sys
		h = nbd.NBD()
		h.connect_unix(sys.argv[1])
		pad = sys.argv[2] + '/pad'
		with open(pad, 'wb') as f:
		    f.write(bytes(2 << 20))
		done = 0
		try:
		    for done in range(0, 64 << 20, 1 << 16):
		        h.pwrite(b'\1' * (1 << 16), done)
		    sys.exit('never full')
		except nbd.Error as e:
		    assert e.errnum == errno.ENOSPC, e
		assert h.pread(done, 0) == b'\1' * done
		os.unlink(pad)
		h.pwrite(b'\2' * (1 << 16), done)
		h.flush()
		assert h.pread(done + (1 << 16), 0) == b'\1' * done + b'\2' * (1 << 16)
	PY
	end_server a KILL
	vhd-info "$d/small/leaf"
}

# Who may open

@test "a second server of the disk is refused, and told why" {
	vhd-create --size=8M "$d/leaf"
	serve a file="$d/leaf"
	run_refused file="$d/leaf"
	assert_output_has "$d/leaf"
	assert_output_has lock
}

@test "the lock is still held when nbdkit has gone into the background" {
	vhd-create --size=8M "$d/leaf"
	nbdkit -P "$s/a.pid" -U "$s/a.nbd" "$QSM_PLUGIN" \
		"$d/leaf" 3>&-
	wait_for test -s "$s/a.pid"
	run_refused file="$d/leaf"
	assert_output_has lock
}

@test "a parent of a served disk cannot be served for writing" {
	vhd-create --size=8M "$d/base.vhd"
	vhd-snap -q --output="$d/leaf" "$d/base.vhd"
	serve a file="$d/leaf"
	run_refused file="$d/base.vhd"
	assert_output_has "$d/base.vhd"
}

@test "read-only servers share a disk, and do not write" {
	vhd-create --size=8M "$d/leaf"
	nbdkit_options=(-r)
	serve a file="$d/leaf"
	serve b file="$d/leaf"
	run nbdinfo --json "$(uri b)"
	jq -e '.exports[0].is_read_only' <<<"$output"
	run qemu-io -f raw -c 'write 0 512' "$(uri b)"
	[ "$status" -ne 0 ]
	nbdkit_options=()
	run_refused file="$d/leaf"
}

@test "read-only is understood in every spelling of the option" {
	vhd-create --size=8M "$d/leaf"
	chmod 0444 "$d/leaf"
	nbdkit_options=(--read-only)
	serve a file="$d/leaf"
	nbdkit_options=(-vr)
	serve b file="$d/leaf"
}

@test "qemu-img sees our lock" {
	vhd-create --size=8M "$d/leaf"
	serve a file="$d/leaf"
	run qemu-img info "$d/leaf"
	[ "$status" -ne 0 ]
	assert_output_has lock
}

@test "we see QEMU's lock" {
	vhd-create --size=8M "$d/leaf"
	qemu_opens -f raw "$d/leaf"
	run_refused file="$d/leaf"
	assert_output_has lock
	exec 7>&-
	wait $!
	serve a file="$d/leaf"
}

@test "without the ownership record nothing is served" {
	vhd-create --size=8M "$d/leaf"
	run_refused file="$d/leaf" owner="$d/owner"
	assert_output_has "$d/owner"
	touch "$d/owner"
	serve a file="$d/leaf" owner="$d/owner"
	nbdinfo "$(uri a)"
	mv "$d/owner" "$d/moved"
	run nbdinfo "$(uri a)"
	[ "$status" -ne 0 ] || fail "a new connection was let in"
}

@test "errors are shown before nbdkit goes into the background" {
	run timeout "$patience" nbdkit -P "$s/a.pid" -U "$s/a.nbd" "$QSM_PLUGIN" \
		file="$d/none.vhd" 3>&-
	[ "$status" -ne 0 ]
	assert_output_has none.vhd
	run timeout "$patience" nbdkit -P "$s/a.pid" -U "$s/a.nbd" "$QSM_PLUGIN" 3>&-
	[ "$status" -ne 0 ]
	assert_output_has file=
}

@test "a parent elsewhere is only found with parent-dir" {
	mkdir "$d/store"
	vhd-create --size=8M "$d/store/base.vhd"
	vhd-snap -q --output="$d/leaf" --parent-dir="$d/store" "$d/store/base.vhd"
	run_refused file="$d/leaf"
	assert_output_has parent-dir
	serve a file="$d/leaf" parent-dir="$d/store"
}

@test "parameters that are unknown or given twice are refused" {
	vhd-create --size=8M "$d/leaf"
	run_refused file="$d/leaf" colour=blue
	assert_output_has colour
	run_refused file="$d/leaf" file="$d/leaf"
	assert_output_has twice
}

# The control socket

@test "status tells what is served" {
	vhd-create --size=8M "$d/base.vhd"
	vhd-snap -q --output="$d/leaf.avhd" "$d/base.vhd"
	pointer disk "$d/leaf.avhd"
	serve a file="$d/disk"
	qemu-io -f raw -c 'write 0 4k' -c 'write 8k 4k' "$(uri a)" >&2
	run control a '{"command":"status"}'
	jq -e --arg d "$d" '.ok and .version == 1 and .file == $d + "/disk" and
		.leaf == $d + "/leaf.avhd" and .chain == [$d + "/leaf.avhd", $d + "/base.vhd"] and
		.size == 8388608 and .writes == 2 and .prepared == null' <<<"$output"
	[ "$(jq .pid <<<"$output")" = "$(cat "$s/a.pid")" ]
}

@test "flush makes a dirty disk clean" {
	vhd-create --size=8M "$d/leaf"
	serve a file="$d/leaf"
	qemu-io -t none -f raw -c 'write 0 4k' "$(uri a)" >&2
	/usr/bin/python3 -c "import nbd; h = nbd.NBD(); h.connect_unix('$s/a.nbd'); h.pwrite(bytes(512), 0)"
	[ "$(control a status | jq .dirty)" = true ]
	[ "$(control a flush)" = '{"ok":true}' ]
	[ "$(control a status | jq .dirty)" = false ]
}

@test "the control socket is the owner's alone, and goes with the server" {
	vhd-create --size=8M "$d/leaf"
	serve a file="$d/leaf"
	[ "$(stat -c %a "$s/a.ctl")" = 600 ]
	end_server a
	[ ! -e "$s/a.ctl" ]
}

@test "a killed server's socket is replaced, a living one's is not, nor a file" {
	vhd-create --size=8M "$d/leaf"
	vhd-create --size=8M "$d/other"
	serve a file="$d/leaf"
	end_server a KILL
	[ -S "$s/a.ctl" ]
	serve a file="$d/leaf"
	control a status | jq -e .ok
	run_refused file="$d/other" control="$s/a.ctl"
	assert_output_has "another server"
	control a status | jq -e .ok
	echo precious >"$d/text"
	run_refused file="$d/other" control="$d/text"
	[ "$(cat "$d/text")" = precious ]
}

@test "a socket that is alive for a moment after its server's end is replaced" {
	vhd-create --size=8M "$d/leaf"
	python3 - "$s/a.ctl" 3>&- <<-'PY' &
		import socket, sys, time
		listener = socket.socket(socket.AF_UNIX)
		listener.bind(sys.argv[1])
		listener.listen()
		listener.settimeout(100)
		# gone once somebody has seen it, without a word
		listener.accept()
		time.sleep(0.01)
	PY
	wait_for grep -q " 00010000 .* $s/a.ctl\$" /proc/net/unix
	serve a file="$d/leaf"
	control a status | jq -e .ok
}

@test "nonsense on the control socket is answered and harms nobody" {
	vhd-create --size=8M "$d/leaf"
	serve a file="$d/leaf"
	for line in 'dance' '{' '[]' '{"command":1}' '{"command":"dance"}' '{"command":"status"}x' \
		'snapshot' '{"command":"snapshot"}' '{"command":"commit"}' '{"cmd":"status"}' \
		'{"command":"flush","command":"status"}'; do
		run control a "$line"
		jq -e '.ok == false and .code == 64 and (.error | length > 0)' <<<"$output" ||
			fail "line: $line"
	done
	control a status | jq -e .ok
}

@test "an endless line is cut off, a half line is no command" {
	vhd-create --size=8M "$d/leaf"
	pointer disk "$d/leaf"
	serve a file="$d/disk"
	run bash -c "head -c 10M /dev/zero | tr '\0' x | socat -t 5 - UNIX-CONNECT:$s/a.ctl"
	control a status | jq -e .ok
	run bash -c "printf 'snapshot $d/child' | socat -t 5 - UNIX-CONNECT:$s/a.ctl"
	[ -z "$output" ]
	control a status | jq -e .ok
}

@test "several commands on one line-fed connection are answered in order" {
	vhd-create --size=8M "$d/leaf"
	serve a file="$d/leaf"
	run control a status '' flush '{"command":"status"}' abort
	[ "$(jq -c '[.ok, has("leaf")]' <<<"$output" | tr '\n' ' ')" = \
		'[true,true] [true,false] [true,true] [true,false] ' ] || fail "wrong replies"
}

@test "many silent clients do not keep others out" {
	vhd-create --size=8M "$d/leaf"
	serve a file="$d/leaf"
	python3 - "$s/a.ctl" <<-'PY'
		import socket, sys
		held = []
		for i in range(100):
		    c = socket.socket(socket.AF_UNIX)
		    c.connect(sys.argv[1])
		    c.settimeout(100)
		    held.append(c)
		held[-1].sendall(b'status\n')
		assert b'"ok":true' in held[-1].recv(65536)
	PY
}

@test "a client that never reads its replies holds nobody up" {
	vhd-create --size=8M "$d/leaf"
	serve a file="$d/leaf"
	python3 - "$s/a.ctl" <<-'PY'
		import socket, sys
		deaf, other = (socket.socket(socket.AF_UNIX) for _ in range(2))
		deaf.connect(sys.argv[1])
		deaf.setblocking(False)
		try:
		    while True:
		        deaf.send(b'status\n' * 1000)
		except BlockingIOError:
		    pass
		other.settimeout(100)
		other.connect(sys.argv[1])
		other.sendall(b'status\n')
		assert b'"ok":true' in other.recv(65536)
	PY
}

# Live snapshots by hand; vhd-snap.bats has the rest

# A served disk $d/disk -> $d/base.vhd and an empty child $d/child.avhd of it.
served_with_child() {
	vhd-create --size=8M "$d/base.vhd"
	vhd-snap -q --output="$d/child.avhd" "$d/base.vhd"
	pointer disk "$d/base.vhd"
	serve a file="$d/disk"
}

@test "snapshot switches the leaf and the pointer, and tells how long the guest was held off" {
	served_with_child
	run control a "snapshot $d/child.avhd"
	jq -e --arg leaf "$d/child.avhd" '.ok and .leaf == $leaf and .blocked_us >= 0' <<<"$output"
	[ "$(readlink "$d/disk")" = "$d/child.avhd" ]
	sum=$(sha256sum "$d/base.vhd")
	qemu-io -f raw -c 'write -P 7 0 64k' "$(uri a)" >&2
	[ "$(sha256sum "$d/base.vhd")" = "$sum" ]
	end_server a
	serve a file="$d/disk"
	qemu-io -f raw -c 'read -P 7 0 64k' "$(uri a)" >&2
}

@test "prepare moves the pointer, abort moves it back" {
	served_with_child
	run control a "{\"command\":\"prepare\",\"child\":\"$d/child.avhd\"}" status abort status
	[ "$(jq -c '[.ok, .prepared]' <<<"$output" | tr '\n' ' ')" = \
		"[true,null] [true,\"$d/child.avhd\"] [true,null] [true,null] " ] || fail "wrong replies"
	[ "$(readlink "$d/disk")" = "$d/base.vhd" ]
	# and the child is free again
	control a "snapshot $d/child.avhd" | jq -e .ok
}

@test "a connection that ends between prepare and commit undoes the prepare" {
	served_with_child
	python3 - "$s/a.ctl" "$d" <<-'PY'
		import json, os, socket, sys, time
		d = sys.argv[2]
		def client():
		    c = socket.socket(socket.AF_UNIX)
		    c.settimeout(100)
		    c.connect(sys.argv[1])
		    return c
		def ask(c, line):
		    c.sendall(line.encode() + b'\n')
		    return json.loads(c.recv(65536))
		a, b = client(), client()
		assert ask(a, 'prepare %s/child.avhd' % d)['ok']
		assert os.readlink(d + '/disk') == d + '/child.avhd'
		# one snapshot at a time, and only by who began it
		assert ask(b, 'prepare %s/child.avhd' % d)['code'] == 75
		assert ask(b, 'snapshot %s/child.avhd' % d)['code'] == 75
		assert ask(b, 'commit')['code'] == 64
		assert ask(b, 'abort')['ok']
		assert os.readlink(d + '/disk') == d + '/child.avhd'
		a.close()
		end = time.time() + 100
		while ask(b, 'status')['prepared'] and time.time() < end:
		    time.sleep(0.01)
		assert os.readlink(d + '/disk') == d + '/base.vhd'
		assert ask(b, 'snapshot %s/child.avhd' % d)['ok']
	PY
}

@test "without a pointer there is no live snapshot" {
	vhd-create --size=8M "$d/base.vhd"
	vhd-snap -q --output="$d/child.avhd" "$d/base.vhd"
	serve a file="$d/base.vhd"
	run control a "snapshot $d/child.avhd"
	jq -e '.ok == false and (.error | contains("symlink"))' <<<"$output"
	[ "$(control a status | jq -r .leaf)" = "$d/base.vhd" ]
}

@test "a pointer that someone else changed is left alone" {
	served_with_child
	vhd-create --size=8M "$d/stranger.vhd"
	ln -sfn "$d/stranger.vhd" "$d/disk"
	run control a "snapshot $d/child.avhd"
	jq -e '.ok == false' <<<"$output"
	[ "$(readlink "$d/disk")" = "$d/stranger.vhd" ]
}

@test "a child that is no child, not empty, missing or relative is refused" {
	served_with_child
	vhd-create --size=8M "$d/stranger.vhd"
	vhd-snap -q --output="$d/strange.avhd" "$d/stranger.vhd"
	cp "$d/child.avhd" "$d/full.avhd"
	"$model" write "$d/full.avhd" --fill 1:4096
	for child in "$d/stranger.vhd" "$d/strange.avhd" "$d/full.avhd" "$d/base.vhd" \
		"$d/none.avhd" child.avhd /etc/passwd "$d"; do
		run control a "snapshot $child"
		jq -e '.ok == false and .code >= 64' <<<"$output" || fail "child: $child"
		[ "$(readlink "$d/disk")" = "$d/base.vhd" ]
	done
	[ "$(control a status | jq -c .chain)" = "[\"$d/base.vhd\"]" ]
}

@test "a child that a restart could not open is refused" {
	served_with_child
	mkdir "$d/away"
	vhd-create --size=8M "$s/x" # something else that lives there
	mv "$d/child.avhd" "$d/away/"
	run control a "snapshot $d/away/child.avhd"
	jq -e '.ok == false' <<<"$output"
	[ "$(readlink "$d/disk")" = "$d/base.vhd" ]
}

@test "snapshots under heavy load lose and reorder nothing, and the frozen disks stay as they are" {
	disk_with_data base.vhd 16M
	pointer disk "$d/base.vhd"
	serve a file="$d/disk"
	"$guest" load "$s/a.nbd" "$s/log" --seconds 3600 >"$s/load.out" 2>&1 &
	load=$!
	wait_for guest_writes
	for i in 1 2 3 4 5; do
		sleep 0.6
		leaf=$(readlink "$d/disk")
		vhd-snap --json --output="$d/$i.avhd" --live="$s/a.ctl" >>"$s/snaps"
		sha256sum "$leaf" >>"$s/sums"
	done
	kill "$load"
	wait "$load" || fail "load: $(cat "$s/load.out")"
	sha256sum -c "$s/sums"
	"$guest" check "$s/log" "$d/disk" --initial "$d/base.vhd.raw"
	for i in base.vhd 1.avhd 2.avhd 3.avhd 4.avhd; do
		"$guest" frozen "$s/log" "$d/$i" --initial "$d/base.vhd.raw"
	done
	jq -r '.snapshots[0].blocked_us' "$s/snaps" | while read -r us; do
		echo "held off for $us us" >&2
		[ "$us" -lt $((patience * 1000000)) ]
	done
}

@test "a snapshot waits for the writes that are under way: none reaches the frozen disk later" {
	disk_with_data base.vhd 8M
	pointer disk "$d/base.vhd"
	serve a file="$d/disk"
	strace -f -qq -o /dev/null -p "$(cat "$s/a.pid")" -e trace=pwrite64 \
		-e inject=pwrite64:delay_enter=100000 2>/dev/null 3>&- &
	wait_for is_traced "$(cat "$s/a.pid")"
	"$guest" load "$s/a.nbd" "$s/log" --seconds 3600 --threads 4 >"$s/load.out" 2>&1 &
	load=$!
	wait_for guest_writes
	for i in 1 2 3; do
		sleep 0.5
		leaf=$(readlink "$d/disk")
		vhd-snap -q --output="$d/$i.avhd" --live="$s/a.ctl" >&2
		sha256sum "$leaf" >>"$s/sums"
	done
	kill "$load"
	wait "$load" || fail "load: $(cat "$s/load.out")"
	sha256sum -c "$s/sums"
	"$guest" check "$s/log" "$d/disk" --initial "$d/base.vhd.raw"
}

@test "a flush on one connection covers what others wrote" {
	disk_with_data leaf 8M
	serve a file="$d/leaf"
	/usr/bin/python3 - "$s/a.nbd" <<-'PY'
		import nbd, sys
		a, b = nbd.NBD(), nbd.NBD()
		a.connect_unix(sys.argv[1])
		b.connect_unix(sys.argv[1])
		assert a.can_multi_conn()
		a.pwrite(b'\5' * 4096, 0)
		b.flush()
		assert b.pread(4096, 0) == b'\5' * 4096
	PY
	[ "$(control a status | jq .dirty)" = false ]
}
