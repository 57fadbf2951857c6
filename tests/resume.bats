# SPDX-License-Identifier: BSD-2-Clause
# Transfers that are interrupted: what was durable stays, and the same command goes on from there.
load helper
load disks
load streams

setup() {
	workdir
	head -c 8M /dev/urandom >disk.raw
}

# send [OPTION]…: the command line that begins a transfer into out, or goes on with it
send() {
	vhd-send --raw --checkpoint=1M --resume="$(vhd-recv --token out)" "$@" disk.raw
}

# send_cut BYTES [OPTION]…: the same with a link that dies after so many bytes
send_cut() {
	local n=$1
	shift
	send "$@" 2>/dev/null | head -c "$n"
}

# The status's number
status_of() {
	vhd-recv --status --json "${2:-out}" | jq -r "$1"
}

# came_whole TYPE: out is disk.raw, and nothing is left of the work
came_whole() {
	if [ "$1" = raw ]; then
		cmp out disk.raw
	else
		[ "$(our_sha out)" = "$(sha disk.raw)" ] || fail "another disk"
	fi
	[ -z "$(ls -A | grep partial)" ] || fail "left behind:" "$(ls -A)"
	[ "$1" = raw ] || sound out
}

@test "a stream that is cut leaves what was durable, for its owner alone" {
	send_cut 3500000 | { run --separate-stderr vhd-recv --type=dynamic out; assert_status 75; [[ $stderr == *--resume* ]]; }
	[ ! -e out ]
	[ "$(status_of .offset)" -eq $((3 << 20)) ]
	[ "$(stat -c %a .out.partial*.tmp | sort -u)" = 600 ]
}

@test "the same command goes on, for every type, and sends the rest only" {
	local t n
	for t in dynamic fixed raw; do
		send_cut 3500000 | vhd-recv --type=$t out || [ $? -eq 75 ]
		n=$(send | tee >(vhd-recv --type=$t out >got) | wc -c)
		wait
		[ "$n" -lt $((5 * 1048576 + 2000)) ] || fail "$n bytes were sent"
		came_whole $t
		[ "$(stat -c %a out)" = 644 ]
		rm out
	done
}

@test "again and again" {
	local i
	for i in 1 2 3 4 5 6 7 8; do
		[ "$(status_of '.offset // 0')" -eq $(((i - 1) << 20)) ] || fail "run $i"
		send_cut 1300000 | vhd-recv --type=dynamic out && break
	done
	came_whole dynamic
}

@test "receipts of an interrupted transfer are those of one piece" {
	send_cut 3500000 | vhd-recv --type=raw out || :
	send --receipt=sent | vhd-recv --receipt=got out
	[ "$(jq -r .stream_sum sent)" = "$(jq -r .stream_sum got)" ]
	[ "$(jq .bytes sent)" = "$(jq .bytes got)" ]
	[ "$(jq .data_bytes got)" -eq $((8 << 20)) ]
	[ "$(jq -r .content_sum got)" = "$(vhd-sum disk.raw | cut -d' ' -f1)" ]
}

@test "an increment goes on" {
	model make base.vhd --size=64M --fill=99:4K --raw=base.raw
	cp base.raw all.raw
	model make child.avhd --parent=base.vhd --fill=1500:4K --seed=7 --raw=all.raw
	mkdir dst
	cp base.vhd dst
	inc() { vhd-send --checkpoint=1M --resume="$(vhd-recv --token dst/c)" --from=base.vhd child.avhd; }
	local i
	for i in 1 2 3 4 5 6 7 8 9; do
		inc 2>/dev/null | head -c 1700000 | vhd-recv --verify --parent=dst/base.vhd dst/c && break
	done
	[ "$i" -gt 2 ] && [ "$i" -lt 9 ]
	is_raw dst/c all.raw
	sound dst/c
	[ -z "$(ls -A dst | grep partial)" ]
}

@test "an increment goes on from the middle of a block that got its first data behind that place" {
	# Entries of the BAT are written when those of another sector are needed: 256 MiB further on.
	vhd-create -q --size=1G base.vhd
	vhd-sum --blocks base.vhd >sums
	truncate -s 1G new.raw
	local at
	for at in 0 1 2 3 5 400 700 701; do
		dd if=disk.raw of=new.raw bs=1M count=1 skip=$((at % 7)) seek=$at conv=notrunc status=none
	done
	inc() { vhd-send --raw --against=sums --checkpoint=3500K "$@" new.raw; }
	inc 2>/dev/null | head -c 6400000 | vhd-recv --parent=base.vhd out || [ $? -eq 75 ]
	[ "$(status_of .offset)" -eq $((5 << 20)) ]
	inc --resume="$(vhd-recv --token out)" | vhd-recv --verify --parent=base.vhd out
	vhd-convert -q --type=raw out - | cmp - new.raw
	sound out
}

@test "what came after the last durable place is forgotten, also if the disk is another there" {
	local t
	for t in dynamic fixed raw; do
		head -c 8M /dev/urandom >disk.raw
		send_cut 3900000 | vhd-recv --type=$t out || :
		# Behind 3 MiB the source changes: there was data, now there are zeros.
		truncate -s 3M disk.raw
		truncate -s 8M disk.raw
		send | vhd-recv --verify out
		came_whole $t
		rm out
	done
}

@test "a file that got the inode of a received one is not taken for it" {
	local inode n
	# The receipt was not given: whoever asks again gets it.
	send | vhd-recv --type=raw out >/dev/full || [ $? -eq 74 ]
	inode=$(stat -c %i out)
	rm out
	for n in {1..50}; do
		echo other >"out.$n"
		[ "$(stat -c %i "out.$n")" != "$inode" ] || break
	done
	[ "$(stat -c %i "out.$n")" = "$inode" ] || skip "inodes are not used again here"
	mv "out.$n" out
	refused 73 vhd-recv --type=raw out < <(send)
	[ "$(cat out)" = other ]
}

@test "a source that was changed in what was sent is refused" {
	send_cut 3500000 | vhd-recv --type=raw out || :
	printf x | dd of=disk.raw bs=1 seek=1500000 conv=notrunc status=none
	refused 65 vhd-send --raw --resume="$(vhd-recv --token out)" disk.raw
	[[ $stderr == *changed* ]]
	vhd-recv --abort out
	send | vhd-recv out
	came_whole raw
}

@test "a source that was only touched, or restored from a copy, goes on" {
	send_cut 3500000 | vhd-recv --type=raw out || :
	cp disk.raw copy
	mv copy disk.raw
	[ "$(send | tee >(vhd-recv out >got) | wc -c)" -lt 5500000 ]
	wait
	came_whole raw
}

# started_again FILE OFFSET: the id of another run of the system, and change.py, which changes a byte of FILE but not its
# times. After the power was cut they may be older than the content; what is written to a mapping of a file on tmpfs
# changes none either.
started_again() {
	echo 01234567-89ab-4def-8123-456789abcdef >boot
	cat >change.py <<-END
		import mmap
		with open('$1', 'r+b') as f, mmap.mmap(f.fileno(), 0) as m:
		    m[$2] ^= 1
	END
}

@test "a source that was changed, and has its old times since the system was started again, is refused" {
	need unshare
	started_again small/disk.raw 1500000
	small_fs 20M '
		send="vhd-send --raw --checkpoint=1M small/disk.raw"
		cp disk.raw small/
		$send 2>/dev/null | head -c 3500000 | vhd-recv --type=raw out
		$send --resume="$(vhd-recv --token out)" >rest || exit 98
		mount --bind boot /proc/sys/kernel/random/boot_id || exit 99
		$send --resume="$(vhd-recv --token out)" >rest || exit 97
		'"$python"' change.py
		$send --resume="$(vhd-recv --token out)" 2>why >/dev/null
		[ $? -eq 65 ]'
	grep changed why
}

@test "a token of another disk, of other options, or none" {
	send_cut 3500000 | vhd-recv --type=raw out || :
	local t
	t=$(vhd-recv --token out)
	head -c 9M /dev/zero >other.raw
	refused 65 vhd-send --raw --resume="$t" other.raw
	[[ $stderr == *"another disk"*--abort* ]]
	model make base.vhd --size=8M
	refused 65 vhd-send --resume="$t" base.vhd
	for bad in x qsm1. "${t%?}" "${t}A" "${t/A/B}" "qsm9.${t#qsm1.}"; do
		refused 64 vhd-send --raw --resume="$bad" disk.raw
	done
}

@test "a rest without what it is the rest of is refused, and no harm is done" {
	send_cut 3500000 | vhd-recv --type=raw out || :
	send >rest
	run --separate-stderr vhd-recv elsewhere <rest
	assert_status 75
	[ ! -e elsewhere ]
	# The rest of another transfer of the same disk
	vhd-recv --abort out
	send_cut 4500000 | vhd-recv --type=raw out || :
	run --separate-stderr vhd-recv out <rest
	assert_status 75
	[ "$(status_of .offset)" -eq $((4 << 20)) ]
	# An older place of the same transfer
	send >rest
	send_cut 2500000 | vhd-recv out || :
	run --separate-stderr vhd-recv out <rest
	assert_status 75
	[ "$(status_of .offset)" -eq $((6 << 20)) ]
	send | vhd-recv out
	came_whole raw
}

@test "the independent reader makes the same token, and joins what goes on" {
	send >whole
	local n
	for n in 3500000 6000000; do
		head -c $n whole >cut
		vhd-recv out <cut || :
		[ "$(dump --token cut)" = "$(vhd-recv --token out)" ]
		vhd-send --raw --checkpoint=1M --resume="$(dump --token cut)" disk.raw >rest
		dump --join joined rest cut
		dump --joined --raw=o joined
		cmp o disk.raw
		vhd-recv --abort out
	done
}

# joined WANT BASE SENDER…: a stream cut by half and its rest, joined by the independent reader, give WANT
joined() {
	local want=$1 base=$2
	shift 2
	"$@" --checkpoint=1M >whole
	head -c $(($(stat -c %s whole) / 2)) whole >cut
	vhd-recv ${base:+--parent="$base"} out <cut || [ $? -eq 75 ]
	[ "$(dump --token cut)" = "$(vhd-recv --token out)" ]
	"$@" --checkpoint=1M --resume="$(dump --token cut)" >rest
	[ "$(stat -c %s rest)" -lt "$(stat -c %s whole)" ]
	dump --join both rest cut
	dump --joined --raw=o ${base:+--base=base.raw} both
	cmp o "$want"
	vhd-recv ${base:+--parent="$base"} out <rest
	[ "$(vhd-sum -q out | cut -c-32)" = "$(vhd-sum -q "$want" | cut -c-32)" ]
	rm out
}

@test "the independent reader joins every kind of stream" {
	model make base.vhd --size=16M --fill=60:4K --raw=base.raw
	cp base.raw all.raw
	model make child.avhd --parent=base.vhd --fill=900:4K --zeros=9 --seed=7 --raw=all.raw
	vhd-sum --blocks --seed=5 base.vhd >sums
	vhd-convert -q --type=dynamic child.avhd new.vhd
	joined all.raw '' vhd-send child.avhd
	joined all.raw base.vhd vhd-send --from=base.vhd child.avhd
	joined all.raw base.vhd vhd-send --against=sums new.vhd
	head -c 6M /dev/urandom | base64 | head -c 8M >text.raw
	joined text.raw '' vhd-send --raw --compress text.raw
}

@test "the token of an increment does not depend on how the records are cut" {
	model make base.vhd --size=16M
	model make child.avhd --parent=base.vhd --fill=900:4K --zeros=20
	vhd-send --checkpoint=64K --from=base.vhd child.avhd >whole
	head -c 1300000 whole >cut
	vhd-recv --parent=base.vhd out <cut || [ $? -eq 75 ]
	[ "$(dump --token cut)" = "$(vhd-recv --token out)" ]
	# Read again after a change of the file's times only
	touch child.avhd
	vhd-send --resume="$(vhd-recv --token out)" --from=base.vhd child.avhd | vhd-recv --parent=base.vhd out
	model cmp out child.avhd
}

@test "damage in the rest is refused, and what was there before stays" {
	send_cut 3500000 | vhd-recv --type=dynamic out || :
	send >rest
	"$python" - <<-'END'
		import random, subprocess, json
		data = open('rest', 'rb').read()
		rnd = random.Random(3)
		def state():
		    return json.loads(subprocess.run(['vhd-recv', '--status', '--json', 'out'], capture_output=True).stdout)['offset']
		at = state()
		for i in range(150):
		    n = rnd.randrange(48 + 40 + 230 if i < 100 else len(data))
		    bad = bytearray(data)
		    bad[n] ^= 1 << rnd.randrange(8)
		    if i & 1 and i > 50:
		        del bad[n:]
		    p = subprocess.run(['vhd-recv', 'out'], input=bad, capture_output=True)
		    assert p.returncode in (75, 76), (i, n, p.returncode, p.stderr)
		    if state() != at:   # what was good of it has become durable
		        subprocess.run(['vhd-recv', '--abort', 'out'], check=True)
		        p = subprocess.run("""vhd-send --raw --checkpoint=1M disk.raw 2>/dev/null |
		            head -c 3500000 | vhd-recv --type=dynamic out""", shell=True, capture_output=True)
		        data = subprocess.run("""vhd-send --raw --checkpoint=1M --resume=$(vhd-recv --token out) disk.raw""",
		            shell=True, capture_output=True).stdout
		        at = state()
	END
	send | vhd-recv out
	came_whole dynamic
}

@test "--abort removes it, whatever its state" {
	vhd-recv --abort out
	send_cut 3500000 | vhd-recv --type=raw out || :
	vhd-recv --abort out
	nothing_left disk.raw
	[ -z "$(vhd-recv --token out)" ]
	send_cut 3500000 | vhd-recv --type=raw out || :
	head -c 300 /dev/urandom >.out.partial-log.tmp
	[ -z "$(vhd-recv --token out)" ]
	vhd-recv --abort out
	nothing_left disk.raw
	echo precious >out
	vhd-recv --abort out
	[ "$(cat out)" = precious ]
}

@test "--status of what lies on a file system that can only be read" {
	need unshare
	needs_root
	send_cut 3500000 | vhd-recv --type=raw out || [ $? -eq 75 ]
	unshare -m sh -c 'mount --bind . . && mount -o remount,ro,bind . && cd "$PWD" &&
		vhd-recv --status --json out' >status
	run cat status
	[ "$(json .offset)" -eq $((3 << 20)) ]
}

@test "--abort removes it also where the log was lost" {
	send_cut 3500000 | vhd-recv --type=raw out || [ $? -eq 75 ]
	rm .out.partial-log.tmp
	vhd-recv --abort out
	nothing_left disk.raw
}

@test "killed before anything was durable: what is there goes when the name is taken" {
	mkfifo pipe
	send >s
	vhd-recv --type=raw out <pipe 3>&- &
	local receiver=$!
	exec 5>pipe
	head -c 700000 s >&5
	wait_for test -e .out.partial.tmp
	kill -KILL $receiver
	wait $receiver || :
	exec 5>&-
	echo other >out
	refused 73 vhd-recv --type=raw out <s
	nothing_left disk.raw out pipe s
}

@test "killed between the two names of the disk where none can be exchanged for another" {
	need strace
	send >s
	run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=renameat2,unlink \
		-e inject=renameat2:error=EINVAL -e inject=unlink:signal=KILL:when=2 vhd-recv --type=raw out <s
	assert_status 137
	[ "$(stat -c %h out)" = 2 ]
	send | vhd-recv --type=raw out
	came_whole raw
	[ "$(stat -c %h out)" = 1 ]
}

@test "a stream that begins anew replaces it" {
	send_cut 3500000 | vhd-recv --type=raw out || :
	head -c 8M /dev/urandom >disk.raw
	run --separate-stderr bash -c 'vhd-send --raw disk.raw | vhd-recv out'
	assert_status 0
	[[ $stderr == *dropped* ]]
	came_whole raw
}

@test "a damaged log or image is not gone on with" {
	send_cut 3500000 | vhd-recv --type=dynamic out || :
	cp .out.partial-log.tmp good
	local n size
	size=$(stat -c %s good)
	for n in 0 9 40 100 "$((size / 2))" "$((size - 3))"; do
		cp good .out.partial-log.tmp
		printf '\252' | dd of=.out.partial-log.tmp bs=1 seek="$n" conv=notrunc status=none
		[ "$(status_of '.offset // 0')" -lt $((3 << 20)) ] || fail "byte $n"
		head -c "$n" good >.out.partial-log.tmp
		[ "$(status_of '.offset // 0')" -lt $((3 << 20)) ] || fail "cut at $n"
	done
	# The last mark is lost: the one before it counts.
	send | vhd-recv --type=dynamic out
	came_whole dynamic
}

@test "killed while it forgets what came after the last durable place" {
	local t
	for t in fixed raw; do
		send_cut 3900000 | vhd-recv --type=$t out || [ $? -eq 75 ]
		# What goes is the end of the file, and with it a fixed disk's footer.
		truncate -s 3M .out.partial.tmp
		send | vhd-recv --verify out
		came_whole $t
		rm out
		# What was durable is missing: never a disk with zeros in its place.
		send_cut 3900000 | vhd-recv --type=$t out || [ $? -eq 75 ]
		truncate -s 2M .out.partial.tmp
		send >rest
		run --separate-stderr vhd-recv out <rest
		assert_status 65
		[ ! -e out ]
		vhd-recv --abort out
	done
}

@test "a file that came in the way is neither replaced nor taken for the disk, and what is kept stays" {
	send_cut 3500000 | vhd-recv --type=raw out || [ $? -eq 75 ]
	echo other >out
	send >rest
	refused 73 vhd-recv --type=raw out <rest
	[ "$(cat out)" = other ]
	# also where the first part came with --force
	vhd-recv --abort out
	send_cut 3500000 | vhd-recv --force --type=raw out || [ $? -eq 75 ]
	send >rest
	refused 73 vhd-recv --type=raw out <rest
	[ "$(cat out)" = other ]
	vhd-recv --force --type=raw out <rest
	came_whole raw
}

# An increment of which the first part came; the rest is in the file rest.
increment_cut() {
	chain src
	mkdir dst
	cp src/base.vhd dst/
	model write src/child.avhd --fill=700:4K --seed=8 --zeros=0
	vhd-send --checkpoint=1M --from=src/base.vhd src/child.avhd | head -c 2000000 |
		vhd-recv --parent=dst/base.vhd dst/child.avhd || [ $? -eq 75 ]
	vhd-send --verify-base --resume="$(vhd-recv --token dst/child.avhd)" --from=src/base.vhd \
		src/child.avhd >rest
}

@test "the rest of an increment: a base that was written to since is not taken, unless it is compared" {
	increment_cut
	touch dst/base.vhd
	refused 65 vhd-recv --parent=dst/base.vhd dst/child.avhd <rest
	[[ $stderr == *'written to since'* ]]
	[ ! -e dst/child.avhd ]
	vhd-recv --verify-base --parent=dst/base.vhd dst/child.avhd <rest
	[ "$(our_sha dst/child.avhd)" = "$(our_sha src/child.avhd)" ]
}

@test "the rest of an increment: a base with its old times is compared if the system was started again" {
	need unshare
	# Larger than what is read unasked
	head -c 40M /dev/urandom >base.raw
	vhd-send --raw base.raw | vhd-recv -q --type=dynamic base.vhd >/dev/null
	model make child.avhd --parent=base.vhd --fill=700:4K --seed=7
	started_again small/base.vhd 20000000
	small_fs 100M '
		send() { vhd-send --checkpoint=1M --from=base.vhd "$@" child.avhd; }
		recv() { vhd-recv --parent=small/base.vhd small/child.avhd; }
		cp base.vhd small/
		send 2>/dev/null | head -c 2000000 | recv
		token=$(vhd-recv --token small/child.avhd)
		rm -f base.vhd.sums small/base.vhd.sums
		send --resume="$token" >untold
		send --resume="$token" --verify-base >told || exit 99
		mount --bind boot /proc/sys/kernel/random/boot_id || exit 98
		'"$python"' change.py
		recv <untold 2>why
		[ $? -eq 65 ] || exit 97
		recv <told 2>>why
		[ $? -eq 65 ] || exit 96
		[ ! -e small/child.avhd ] || exit 95
		'"$python"' change.py
		recv <told'
	grep 'started again' why
	grep 'changed since' why
}

@test "the rest of an increment: --base-changed takes a base that was written to since" {
	increment_cut
	model write dst/base.vhd --fill=1:512 --seed=9
	refused 65 vhd-recv --verify-base --parent=dst/base.vhd dst/child.avhd <rest
	vhd-recv --base-changed --parent=dst/base.vhd dst/child.avhd <rest
	[ -e dst/child.avhd ]
}

@test "what another user has left is not gone on with" {
	needs_root
	send_cut 3500000 | vhd-recv --type=raw out || [ $? -eq 75 ]
	send >rest
	chmod 1777 .
	chown nobody .out.partial-log.tmp
	refused 77 vhd-recv --type=raw out <rest
	[[ $stderr == *"belongs to another user"* ]]
	refused 77 vhd-recv --token out
	chmod 755 .
	vhd-recv --type=raw out <rest
	came_whole raw
}

@test "a second receiver waits and gives up" {
	mkfifo pipe
	{ send_cut 3500000; exec sleep 600; } >pipe 3>&- &
	local sender=$!
	vhd-recv --type=raw out <pipe 3>&- &
	local receiver=$!
	wait_for test -e .out.partial-log.tmp
	vhd-send --raw disk.raw >s
	run --separate-stderr timeout "$patience" vhd-recv --type=raw out <s
	assert_status 75
	[[ $stderr == *another* ]]
	run --separate-stderr timeout "$patience" vhd-recv --abort out
	assert_status 75
	[ "$(status_of .state)" = receiving ]
	kill $sender
	wait $receiver || :
	send | vhd-recv out
	came_whole raw
}

@test "a second receiver that waited for the first finds the disk, and compares it" {
	send >s
	mkfifo fifo
	vhd-recv --type=raw out <fifo >first 3>&- &
	local first=$!
	exec 5>fifo
	head -c 8000000 s >&5
	# What is left is done in a moment: the second one waits ten seconds.
	wait_for sh -c '[ "$(vhd-recv --status --json out | jq ".offset // 0")" -ge 7000000 ]'
	vhd-recv --type=raw out <s >second 3>&- 5>&- &
	local second=$!
	sleep 0.5
	tail -c +8000001 s >&5
	exec 5>&-
	wait $first
	wait $second
	cmp first second
	came_whole raw
}

@test "a signal keeps what is durable" {
	mkfifo pipe
	{ send_cut 3500000; exec sleep 600; } >pipe 3>&- &
	local sender=$! status=0
	vhd-recv --type=raw out <pipe 3>&- &
	local receiver=$!
	wait_for sh -c '[ "$(vhd-recv --status --json out | jq ".offset // 0")" -gt 3000000 ]'
	kill -TERM $receiver
	wait $receiver || status=$?
	[ $status -eq 75 ]
	kill $sender
	[ "$(status_of .offset)" -eq $((3 << 20)) ]
	send | vhd-recv out
	came_whole raw
}

@test "a terminal that is closed ends it as a signal does, but not under nohup" {
	mkfifo pipe
	{ send_cut 700000; exec sleep 600; } >pipe 3>&- &
	local sender=$! status=0
	# The tests themselves may run under nohup.
	env --default-signal=HUP vhd-recv --type=raw out <pipe 3>&- &
	local receiver=$!
	wait_for test -e .out.partial.tmp
	kill -HUP $receiver
	wait $receiver || status=$?
	kill $sender
	[ $status -eq 75 ]
	nothing_left disk.raw pipe
	{ send_cut 3500000; exec sleep 600; } >pipe 3>&- &
	sender=$!
	(trap '' HUP; exec vhd-recv --type=raw out <pipe 3>&-) &
	receiver=$!
	wait_for sh -c '[ "$(vhd-recv --status --json out | jq ".offset // 0")" -gt 3000000 ]'
	kill -HUP $receiver
	sleep 0.3
	kill -0 $receiver
	kill $sender $receiver
}

@test "killed when the disk had its name already: the same command tells that all is there" {
	# A standard output that blocks lets the receipt wait while the disk is there.
	mkfifo full
	exec 8<>full
	# However much it takes; it says that it would have to wait for more.
	dd if=/dev/zero of=full bs=512 oflag=nonblock conv=notrunc 2>/dev/null || :
	send >s
	vhd-recv --type=raw out <s >full 3>&- &
	local receiver=$!
	wait_for test -e out
	kill -KILL $receiver
	wait $receiver || :
	exec 8>&-
	[ -n "$(vhd-recv --token out)" ]
	run --separate-stderr bash -c 'vhd-send --raw --resume="$(vhd-recv --token out)" disk.raw | vhd-recv out'
	assert_status 0
	[ "$(json .content_sum)" = "$(vhd-sum disk.raw | cut -d' ' -f1)" ]
	came_whole raw
	came_whole raw
}

@test "killed when the disk had its name already: a stream from its start finds that all is there" {
	send >s
	vhd-recv --type=raw out <s >/dev/full || [ $? -eq 74 ]
	[ -e .out.partial-log.tmp ]
	vhd-recv --type=raw out <s >r
	[ "$(jq -r .content_sum r)" = "$(vhd-sum disk.raw | cut -d' ' -f1)" ]
	came_whole raw
}

# same_again FILE COMMAND…: with the stream s it finds that FILE is all of it, and tells what it told the first time
same_again() {
	local f=$1
	shift
	"$@" "$f" <s >first
	unchanged "$f" -- "$@" "$f" <s
	assert_status 0
	[ "$output" = "$(cat first)" ] || fail "another receipt: $output"
}

@test "killed when its receipt was out: the same pipe finds that all is there, and tells it once more" {
	local t
	chain
	vhd-send base.vhd >s
	for t in keep dynamic fixed raw; do
		same_again "$t" vhd-recv --type=$t
	done
	same_again verified vhd-recv --verify
	head -c 1M /dev/urandom >odd.raw
	vhd-send --raw odd.raw >s
	same_again odd.vhd vhd-recv --type=dynamic
	vhd-send --from=base.vhd child.avhd >s
	same_again new.avhd vhd-recv --parent=base.vhd
	[ "$(our_sha new.avhd)" = "$(our_sha child.avhd)" ]
	# with another stream of the same disk, too
	vhd-send --compress base.vhd >s
	unchanged keep -- vhd-recv keep <s
	assert_status 0
	nothing_left base.vhd base.raw disk.raw child.avhd dynamic fixed keep raw verified odd.raw odd.vhd new.avhd s first
}

@test "what is there and differs in anything stays: 73" {
	model make disk.vhd --size=4M --fill=20:4K --raw=raw
	vhd-send disk.vhd >s
	vhd-recv out <s
	unchanged out -- vhd-recv --type=fixed out <s
	assert_status 73
	unchanged out -- vhd-recv --new-uuid out <s
	assert_status 73
	cp out sparse
	model write sparse --fill=1:512 --seed=4
	unchanged sparse -- vhd-recv sparse <s
	assert_status 73
	vhd-recv --type=raw flat <s
	for n in 0 1048576 4194303; do
		cp flat other
		printf '\377' | dd of=other bs=1 seek=$n conv=notrunc status=none
		cmp -s flat other && continue
		unchanged other -- vhd-recv --type=raw other <s
		assert_status 73
	done
	truncate -s +512 flat
	unchanged flat -- vhd-recv --type=raw flat <s
	assert_status 73
	# nothing is told of it before the end of the stream
	head -c 20000 s >cut
	unchanged out -- vhd-recv out <cut
	assert_status 76
}

@test "an increment that is there, and holds more than the stream, stays: 73" {
	chain
	vhd-send --from=base.vhd child.avhd >s
	vhd-recv --parent=base.vhd out <s
	model write out --fill=1:512 --seed=11
	unchanged out -- vhd-recv --parent=base.vhd out <s
	assert_status 73
	# the same to the guest, but not the same file
	rm out
	vhd-recv --parent=base.vhd out <s
	model make other.avhd --parent=base.vhd --seed=9
	unchanged other.avhd -- vhd-recv --parent=base.vhd other.avhd <s
	assert_status 73
}

@test "an increment that is there, and leads to another version of its base, stays: 73" {
	chain
	mkdir old
	cp base.vhd old/
	model write old/base.vhd --fill=1:512 --seed=11
	vhd-send --from=base.vhd child.avhd >s
	vhd-recv --base-changed --parent=old/base.vhd out <s
	unchanged out -- vhd-recv --parent=base.vhd out <s
	assert_status 73
	ln base.vhd old/link.vhd
	vhd-recv --force --parent=base.vhd out <s
	vhd-recv --parent=old/link.vhd out <s
}

@test "a disk that is there and another one of its size is refused before the data comes" {
	model make disk.vhd --size=8M --fill=900:4K
	vhd-send disk.vhd >s
	model make out --size=8M
	mkfifo pipe
	{ head -c 3000 s; exec sleep 600; } >pipe 3>&- &
	local sender=$!
	run --separate-stderr timeout "$patience" vhd-recv out <pipe
	kill $sender
	assert_status 73
}

@test "a full disk: space is made, and it goes on" {
	local t
	for t in dynamic fixed raw; do
		run --separate-stderr small_fs 9M "
			set +e
			send() { vhd-send -q --raw --checkpoint=1M --resume=\"\$(vhd-recv --token small/out)\" disk.raw; }
			head -c 4M /dev/zero >small/filler
			send | vhd-recv --type=$t small/out; [ \$? -eq 73 ] || exit 1
			[ ! -e small/out ] || exit 2
			at=\$(vhd-recv --status --json small/out | jq '.offset // 0')
			[ \$at -ge 2097152 ] || exit 3
			rm small/filler
			[ \$(send | tee rest | wc -c) -lt \$((8388608 - at + 5000)) ] || exit 4
			vhd-recv --type=$t small/out <rest || exit 5
			[ \$(vhd-sum small/out | cut -c-32) = \$(vhd-sum disk.raw | cut -c-32) ] || exit 6"
		assert_status 0
	done
}

@test "options of the first time are kept, and must not be others" {
	send_cut 3500000 | vhd-recv --type=dynamic out || :
	run --separate-stderr bash -c 'vhd-send --raw --resume="$(vhd-recv --token out)" disk.raw 2>/dev/null | vhd-recv --type=fixed out'
	assert_status 64
	[[ $stderr == *--type=dynamic* ]]
	send | vhd-recv out
	came_whole dynamic
}

@test "a dry run tells what is left" {
	send_cut 3500000 | vhd-recv --type=dynamic out || :
	run --separate-stderr send --dry-run --json
	[ "$(json .bytes)" -eq "$(send | tee rest | wc -c)" ]
	[ "$(json .data_bytes)" -eq $((5 << 20)) ]
	# CONTINUE, five of DATA with four checkpoints between them, END
	[ "$(json .records)" -eq 11 ]
	run --separate-stderr send --dry-run=map --json
	[ "$(json .bytes)" -ge "$(stat -c %s rest)" ]
	[ "$(json .data_bytes)" -eq $((5 << 20)) ]
}

@test "names that are too long to have more behind them" {
	local long
	long=$(printf '%0240d' 7)
	vhd-send --raw --checkpoint=1M disk.raw 2>/dev/null | head -c 3500000 | vhd-recv --type=raw "$long" || :
	[ -n "$(vhd-recv --token "$long")" ]
	[ -z "$(vhd-recv --token "${long%7}8")" ]
	vhd-send --raw --resume="$(vhd-recv --token "$long")" disk.raw | vhd-recv "$long"
	cmp "$long" disk.raw
}

@test "compressed, and not the second time" {
	seq 1 2000000 | head -c 8M >disk.raw
	send --compress >whole
	[ "$(stat -c %s whole)" -lt 4000000 ]
	send_cut 1800000 --compress | vhd-recv --type=raw out || [ $? -eq 75 ]
	[ -n "$(vhd-recv --token out)" ]
	send | vhd-recv --verify out
	came_whole raw
}

@test "a disk with data and zeros in most chunks" {
	rm disk.raw
	model make disk.vhd --size=40M --fill=900:4K --raw=disk.raw
	vhd-send --checkpoint=1 disk.vhd >s
	local size n
	size=$(stat -c %s s)
	for n in 3 5 7; do
		head -c $((size * n / 8)) s | vhd-recv out 2>/dev/null || :
		[ -n "$(vhd-recv --token out)" ]
		vhd-send --checkpoint=1 --resume="$(vhd-recv --token out)" disk.vhd | vhd-recv --verify out
		came_whole dynamic
		rm out
	done
}

@test "either side killed at every checkpoint" {
	send >whole
	local pos k=0 sender receiver rest
	dump --records whole | awk '$3 == "CHECKPOINT" && $5 % 1048576 == 0 { print $2 + 40 + $7 }' >ends
	[ "$(wc -l <ends)" -ge 7 ]
	mkfifo pipe
	while read -r pos; do
		k=$((k + 1))
		# The sender dies: what it sent arrives, and no more.
		head -c "$pos" whole | vhd-recv --type=dynamic out || [ $? -eq 75 ]
		[ "$(status_of .offset)" -eq $((k << 20)) ]
		send >rest
		vhd-recv out <rest
		[ "$(stat -c %s rest)" -lt $(($(stat -c %s whole) - pos + 1000)) ]
		came_whole dynamic
		rm out
		# The receiver dies, when that is durable and when it is not yet
		{ head -c "$pos" whole; exec sleep 600; } >pipe 3>&- &
		sender=$!
		vhd-recv --type=dynamic out <pipe 3>&- &
		receiver=$!
		if [ $((k % 2)) -eq 0 ]; then
			wait_for sh -c '[ "$(vhd-recv --status --json out | jq ".offset // 0")" -eq '$((k << 20))' ]'
		else
			wait_for test -e .out.partial.tmp
		fi
		kill -KILL $receiver $sender
		wait $receiver $sender || :
		# What was durable, and at the most one more in the making, is not sent again.
		[ $((k % 2)) -eq 1 ] || [ "$(status_of .offset)" -eq $((k << 20)) ]
		send | vhd-recv --type=dynamic out
		came_whole dynamic
		rm out
	done <ends
}

# sent: where the sender of the last run had come to, in bytes of the stream. What goes through the relay is counted;
# one that goes on begins with a preamble and CONTINUE, which are not of the stream.
sent() {
	if [ "$from" -gt 0 ]; then
		echo $((from + $(stat -c %s relay.out) - 500))
	else
		stat -c %s relay.out
	fi
}

# Of what was sent, what did not become durable is sent again: at most what lies between three checkpoints, since
# one is made durable while the next comes, and what stands in the pipes and in the receiver's memory.
@test "either side killed at random moments: the same command finishes, with the same result" {
	local seed=${QSM_SEED:-$RANDOM} i tries victim status from=0 again most=0
	local checkpoint=2 pipes=6 kills=0
	echo "seed $seed"
	RANDOM=$seed
	head -c 24M /dev/urandom >disk.raw
	for i in $(seq "${QSM_KILLS:-4}"); do
		victim=vhd-send
		[ $((i % 2)) -eq 0 ] || victim=vhd-recv
		from=0
		for tries in $(seq 80); do
			[ "$tries" -lt 80 ] || fail "does not come to an end, seed $seed, run $i"
			# The source is slow enough to be interrupted, and faster each time; where syncs take long the
			# moments come later and later.
			rm -f pid.vhd-send pid.vhd-recv
			rate=$((20 + 20 * tries))M token=$(vhd-recv --token out) checkpoint=${checkpoint}M bash -c '
				sh -c "echo \$\$ >pid.vhd-send; exec vhd-send --raw --checkpoint=$checkpoint \
					--resume=$token --rate-limit=$rate disk.raw" 2>/dev/null |
					tee relay.out 2>/dev/null |
					sh -c "echo \$\$ >pid.vhd-recv; exec vhd-recv --type=dynamic out" >got 2>err
				exit "${PIPESTATUS[2]}"' 2>/dev/null 3>&- &
			wait_for test -s pid.vhd-send
			wait_for test -s pid.vhd-recv
			sleep "$(awk -v r=$RANDOM -v t="$tries" 'BEGIN { print r / 32768 * 0.3 * 1.1 ^ t }')"
			kill -KILL "$(cat pid.$victim)" 2>/dev/null || :
			status=0
			wait $! || status=$?
			# The receipt says that all is there, whatever became of the process then.
			[ $status -ne 0 ] && [ ! -s got ] || break
			case $status in 137 | 76 | 75) ;; *) fail "status $status, seed $seed, run $i: $(cat err)" ;; esac
			kills=$((kills + 1))
			again=$(($(sent) - $(status_of '.bytes // 0')))
			[ "$again" -le "$most" ] || most=$again
			[ "$again" -le $(((2 * checkpoint + pipes) << 20)) ] ||
				fail "$again bytes have to be sent again, seed $seed, run $i, try $tries"
			from=$(status_of '.bytes // 0')
		done
		came_whole dynamic
		rm out
	done
	echo "# $i runs, $kills kills, at most $most bytes sent twice, seed $seed" >&3
}
