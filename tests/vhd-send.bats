# SPDX-License-Identifier: BSD-2-Clause
# vhd-send: the stream is what the page says, and holds what the guest sees.
load helper
load disks
load streams

setup() {
	workdir
}

# signal_ends OPTION…: a sender whose reader hangs.
signal_ends() {
	mkfifo pipe
	sleep 600 <pipe 3>&- &
	local sleeper=$!
	vhd-send --raw "$@" disk.raw >pipe 3>&- &
	local sender=$! status=0
	wait_for catches_term $sender
	kill -TERM $sender
	timeout "$patience" tail --pid=$sender -f /dev/null
	wait $sender || status=$?
	kill $sleeper
	[ $status -eq 75 ]
}

# holds STREAM RAW [OPTION]…: the independent reader finds nothing wrong and makes RAW of it.
holds() {
	dump --raw=out.raw "${@:3}" "$1" >/dev/null || fail "the stream is refused"
	cmp out.raw "$2"
}

@test "a dynamic disk" {
	chain
	vhd-send base.vhd >s
	holds s base.raw
}

@test "a fixed disk" {
	model make disk.vhd --kind=fixed --size=3M --fill=30:4K --raw=disk.raw
	vhd-send disk.vhd >s
	holds s disk.raw
}

@test "a raw disk, also of odd size" {
	head -c 1500001 /dev/urandom >disk.raw
	vhd-send --raw disk.raw >s
	holds s disk.raw
}

@test "a raw disk must be named as one" {
	head -c 1M /dev/urandom >disk.raw
	refused 65 vhd-send disk.raw
}

@test "a whole chain is one disk" {
	chain
	vhd-send child.avhd >s
	holds s disk.raw
}

@test "an increment is what lies above the parent, and no more" {
	chain
	vhd-send --from=base.vhd child.avhd >s
	holds s disk.raw --base=base.raw
	[ "$(stat -c %s s)" -lt $((30 * 4096 + 30 * 80 + 1000)) ]
}

@test "an increment from further down" {
	chain
	cp disk.raw mid.raw
	model make leaf.avhd --parent=child.avhd --fill=20:512 --seed=9 --raw=disk.raw
	vhd-send --from=base.vhd leaf.avhd >s
	holds s disk.raw --base=base.raw
	vhd-send --from=child.avhd leaf.avhd >s
	holds s disk.raw --base=mid.raw
}

@test "zeros that hide the parent's data are sent" {
	model make base.vhd --size=4M --fill=64:64K --seq --zeros=0 --raw=disk.raw
	cp disk.raw base.raw
	model make child.avhd --parent=base.vhd --fill=20:64K --zeros=1 --raw=disk.raw
	# zeros that are stored, and zeros that are holes
	fallocate -d -o 0 -l 2M child.avhd || skip "needs a file system with holes"
	run cmp -s base.raw disk.raw
	assert_status 1
	vhd-send --from=base.vhd child.avhd >s
	holds s disk.raw --base=base.raw
	[ "$(stat -c %s s)" -lt 3000 ]
}

@test "other block sizes" {
	for b in 64K 512K 8M; do
		model make disk.vhd --size=20M --block=$b --fill=30:4K --raw=disk.raw
		vhd-send disk.vhd >s
		holds s disk.raw
		rm disk.*
	done
}

@test "holes and stored zeros cost nothing" {
	model make disk.vhd --kind=fixed --size=64M
	vhd-send disk.vhd >s
	[ "$(stat -c %s s)" -lt 1000 ]
	dd if=/dev/zero of=dense.raw bs=1M count=16 status=none
	vhd-send --raw dense.raw >s
	[ "$(stat -c %s s)" -lt 1000 ]
}

@test "2040 GiB without data, in seconds" {
	vhd-create --size=2040G disk.vhd
	run timeout "$patience" sh -c 'vhd-send disk.vhd | wc -c'
	[ "$output" -lt 1000 ]
}

@test "the manual's example" {
	vhd-create --size=1M empty.vhd
	[ "$(vhd-send empty.vhd | wc -c)" -eq "$(grep -x '[0-9]*' "$top/man/vhd-stream.5")" ]
}

@test "an ancestor must be one" {
	chain
	model make other.vhd --size=8M --seed=99
	refused 65 vhd-send --from=other.vhd child.avhd
	refused 64 vhd-send --from=child.avhd child.avhd
	refused 66 vhd-send --from=gone.vhd child.avhd
}

@test "an ancestor by another name" {
	chain
	ln -s base.vhd 'other name'
	vhd-send --from="$PWD/other name" child.avhd >s
	holds s disk.raw --base=base.raw
}

@test "a dry run is exact" {
	chain
	local o
	for o in --quiet --compress --from=base.vhd; do
		run --separate-stderr vhd-send --dry-run --json "$o" child.avhd
		assert_status 0
		vhd-send "$o" child.avhd >s
		[ "$(json .bytes)" -eq "$(stat -c %s s)" ] || fail "$o"
		[ "$(json .records)" -eq "$(dump --records s | wc -l)" ]
	done
	run --separate-stderr vhd-send -n child.avhd
	assert_output_has "$(vhd-send child.avhd | wc -c) bytes"
}

@test "a dry run from the map is an upper bound, and reads no data" {
	chain
	local o
	for o in --quiet --from=base.vhd; do
		run --separate-stderr faulty FAULT_READ=1 vhd-send --dry-run=map --json "$o" child.avhd
		assert_status 0
		[ "$(jq .exact <<<"$output")" = false ]
		[ "$(jq .bytes <<<"$output")" -ge "$(vhd-send "$o" child.avhd | wc -c)" ]
	done
}

@test "compression, where it pays" {
	need zstd
	seq 1 200000 >disk.raw
	truncate -s 4M disk.raw
	vhd-send --raw --compress=3 disk.raw >s
	holds s disk.raw
	[ "$(stat -c %s s)" -lt 700000 ]
	head -c 4M /dev/urandom >disk.raw
	vhd-send --raw disk.raw >plain
	vhd-send --raw --compress disk.raw >s
	holds s disk.raw
	[ "$(stat -c %s s)" -eq "$(stat -c %s plain)" ]
}

# mixed: disk.raw, of what shrinks, what does not, and zeros, and the token of a stream of it that
# was cut: a stream that goes on has the id of the first one.
mixed() {
	{
		seq 1 400000
		head -c 3M /dev/urandom
		head -c 300K /dev/zero
		seq 1 400000
		head -c 5M /dev/zero
		seq 1 600000
	} >disk.raw
	truncate -s 16M disk.raw
	vhd-send --raw --compress --checkpoint=64K disk.raw 2>cut.log | head -c 500000 >cut
	token=$(vhd-stream trim --force cut)
	[ -n "$token" ]
}

@test "with any number of threads the stream is the same" {
	need zstd
	mixed
	local n
	vhd-send --raw --resume="$token" --compress --threads=1 --checkpoint=1M disk.raw >one
	for n in 2 3 8; do
		vhd-send --raw --resume="$token" --compress --threads="$n" --checkpoint=1M disk.raw >many
		cmp one many
	done
	cat cut one >s
	holds s disk.raw
}

@test "with any number of threads the stream of small pieces is the same" {
	need zstd
	chain
	vhd-send --from=base.vhd --compress --checkpoint=64K child.avhd | head -c 100000 >cut
	local token
	token=$(vhd-stream trim --force cut)
	vhd-send --from=base.vhd --resume="$token" --compress --threads=1 child.avhd >one
	vhd-send --from=base.vhd --resume="$token" --compress --threads=8 child.avhd >many
	cmp one many
	cat cut many >s
	holds s disk.raw --base=base.raw
}

@test "with fewer threads than wished for, or none, it takes longer" {
	need zstd
	mixed
	local n
	vhd-send --raw --resume="$token" --compress disk.raw >whole
	for n in 1 2; do
		faulty FAULT_THREAD=$n vhd-send --raw --resume="$token" --compress --threads=4 disk.raw >s
		cmp whole s
	done
}

@test "a thread without memory ends the stream with the reason" {
	need zstd
	mixed
	local n status
	for n in 1 5; do
		status=0
		faulty FAULT_PACK=$n vhd-send --raw --compress --threads=3 disk.raw >s 2>why || status=$?
		[ $status -eq 75 ]
		grep -q "cannot compress" why
		refused 76 vhd-recv out <s
	done
	nothing_left cut cut.log disk.raw s why
}

@test "a signal ends the threads too, although the reader hangs" {
	need zstd
	seq 1 4000000 >disk.raw
	truncate -s 64M disk.raw
	signal_ends --compress=9 --threads=4 --rate-limit=10K
}

@test "a rate limit holds" {
	head -c 600000 /dev/urandom >disk.raw
	local began=${EPOCHREALTIME/./}
	[ "$(vhd-send --raw --rate-limit=300000 disk.raw | wc -c)" -gt 600000 ]
	local took=$((${EPOCHREALTIME/./} - began))
	[ $took -gt 1900000 ] && [ $took -lt 60000000 ] || fail "took $took µs"
}

# At 100 KiB a second since $began, and what it may send at once.
slow() {
	local size
	size=$(stat -c %s s)
	[ "$size" -lt $((450000 + (${EPOCHREALTIME/./} - began) / 10)) ] || fail "sent $size bytes"
}

@test "a rate from a file is changed while it runs" {
	head -c 10M /dev/urandom >disk.raw
	echo 100K >rate
	local began=${EPOCHREALTIME/./} sender
	vhd-send --raw --rate-file=rate disk.raw >s 3>&- &
	sender=$!
	wait_for test -s s
	sleep 1.5
	slow
	echo nonsense >rate
	kill -HUP $sender
	sleep 0.5
	slow
	echo 0 >rate
	kill -HUP $sender
	wait $sender
	# 100 seconds at the first rate
	[ $((${EPOCHREALTIME/./} - began)) -lt 60000000 ]
	holds s disk.raw
	echo 5x >rate
	refused 64 vhd-send --raw --rate-file=rate disk.raw
	refused 66 vhd-send --raw --rate-file=gone disk.raw
}

@test "checkpoints come at least every five seconds" {
	head -c 1200000 /dev/urandom >disk.raw
	# Its first record takes seven.
	vhd-send --raw --rate-limit=150000 disk.raw >s
	dump --records s | grep -q ' CHECKPOINT '
	holds s disk.raw
}

@test "a checkpoint after 256 MiB" {
	truncate -s 600M disk.raw
	for i in $(seq 0 50000 550000); do
		dd if=/dev/urandom of=disk.raw bs=1K count=40000 seek="$i" conv=notrunc status=none
	done
	[ "$(vhd-send --raw disk.raw | dump --records - | grep -c ' CHECKPOINT ')" -ge 1 ]
}

@test "the receipt tells what was sent" {
	chain
	vhd-send --receipt=r child.avhd >s
	run cat r
	[ "$(json .version)" -eq 1 ]
	[ "$(json .bytes)" -eq "$(stat -c %s s)" ]
	[ "$(json .content_sum)" = "$(vhd-sum child.avhd | cut -d' ' -f1)" ]
	[ "$(json .stream_sum)" = "$(dump --json s | jq -r .stream_sum)" ]
	[ "$(json .uuid)" = "$(vhd-info --json child.avhd | jq -r '.. | .uuid? // empty' | head -n 1)" ]
}

@test "a receipt is not overwritten, unless forced" {
	chain
	echo precious >r
	refused 73 vhd-send --receipt=r base.vhd
	[ "$(cat r)" = precious ]
	vhd-send --force --receipt=r base.vhd >s
	jq -e .stream_sum r
	: >empty
	vhd-send --receipt=empty base.vhd >s
	jq -e .stream_sum empty
}

@test "a receipt through a descriptor" {
	chain
	vhd-send --receipt=/dev/fd/5 base.vhd 5>&1 >s | jq -e .bytes
}

@test "never to a terminal" {
	chain
	run on_terminal 'vhd-send base.vhd'
	assert_status 64
	[[ $output != *VHS* ]]
}

@test "the reader goes away" {
	head -c 8M /dev/urandom >disk.raw
	run --separate-stderr bash -c 'vhd-send --raw disk.raw | head -c 1000 >part; exit "${PIPESTATUS[0]}"'
	assert_status 69
	[[ $stderr == *"went away"* ]]
}

@test "a closed or full standard output" {
	chain
	run bash -c 'vhd-send base.vhd >&-'
	assert_status 74
	sound base.vhd
	run bash -c 'vhd-send base.vhd >/dev/full'
	assert_status 73
}

@test "a bad sector of the source: the receiver is told" {
	head -c 4M /dev/urandom >disk.raw
	run --separate-stderr bash -c "$(declare -f faulty); "'faulty FAULT_READ=3 vhd-send --raw disk.raw >s'
	assert_status 74
	run dump s
	assert_status 76
	assert_output_has 'gave up'
	run --separate-stderr vhd-recv --type=raw out <s
	assert_status 76
	[[ $stderr == *"gave up"* ]]
	nothing_left disk.raw s
}

@test "a disk that is written to is refused" {
	chain
	hold base.vhd write
	run --separate-stderr bash -c 'vhd-send base.vhd | wc -c; exit "${PIPESTATUS[0]}"'
	assert_status 75
	[ "$output" -eq 0 ]
	release
}

@test "a disk that others read may be sent" {
	chain
	hold base.vhd read
	vhd-send base.vhd >s
	release
	holds s base.raw
}

@test "a signal ends it, although the reader hangs" {
	head -c 8M /dev/urandom >disk.raw
	signal_ends
}

@test "odd names" {
	local n
	for n in 'with space' $'new\nline' '-dash' 'quote"\'; do
		model make "./$n" --size=1M --fill=3:4K --raw=x.raw
		vhd-send --receipt=r -- "$n" >s
		holds s x.raw
		[ "$(jq -r .file r && printf x)" = "$n"$'\nx' ]
		rm -- "./$n" x.raw r
	done
}

@test "a disk that is too large for a stream" {
	local f
	f=$(mktemp -p /dev/shm) || skip "needs /dev/shm"
	truncate -s 64T "$f" && vhd-send --raw "$f" >s && rm s && truncate -s 70368744177665 "$f" ||
		{ rm "$f"; skip "no such file on /dev/shm"; }
	run --separate-stderr vhd-send --raw "$f"
	rm -f "$f" "$f.sums"
	assert_status 65
	[ -z "$output" ]
	[[ $stderr = *"64 TiB"* ]]
}

@test "a missing disk, a damaged disk, a missing parent" {
	chain
	refused 66 vhd-send gone.vhd
	truncate -s 3000 base.vhd
	refused 65 vhd-send base.vhd
	rm base.vhd
	refused 66 vhd-send child.avhd
}

@test "usage" {
	chain
	refused 64 vhd-send
	refused 64 vhd-send base.vhd base.vhd
	refused 64 vhd-send --json base.vhd
	refused 64 vhd-send --verify-base base.vhd
	refused 64 vhd-send --compress=99 base.vhd
	refused 64 vhd-send --compress --threads=9 base.vhd
	refused 64 vhd-send --threads=2 base.vhd
	refused 64 vhd-send --rate-limit=fast base.vhd
	refused 64 vhd-send --rate-limit=0 base.vhd
	refused 64 vhd-send --dry-run=guess base.vhd
	refused 64 vhd-send --dry-run --receipt=r base.vhd
}

# stale: old.vhd is what disk.vhd was; three of its chunks changed since
stale() {
	head -c 40M /dev/urandom >old.raw
	truncate -s 200M old.raw
	cp old.raw new.raw
	printf changed | dd of=new.raw bs=1 seek=5000000 conv=notrunc status=none
	dd if=/dev/zero of=new.raw bs=1M seek=9 count=1 conv=notrunc status=none
	printf new | dd of=new.raw bs=1 seek=150000000 conv=notrunc status=none
	vhd-convert -q --from=raw --type=dynamic old.raw old.vhd
	vhd-send --raw new.raw | vhd-recv --type=dynamic new.vhd
}

@test "against sums of a stale copy only the difference is sent" {
	stale
	local n
	for n in 0 77; do
		vhd-sum --blocks --seed=$n old.vhd >sums
		[ "$(wc -l <sums)" -lt 50 ]
		vhd-send --against=sums new.vhd >s
		[ "$(stat -c %s s)" -lt 2100000 ]
		dump --raw=out.raw --base=old.raw s >/dev/null
		cmp out.raw new.raw
	done
	vhd-sum --blocks old.vhd | vhd-send --against=- new.vhd | vhd-recv --verify --parent=old.vhd child.avhd
	[ "$(vhd-sum child.avhd | cut -d' ' -f1)" = "$(vhd-sum new.raw | cut -d' ' -f1)" ]
	[ "$(vhd-send --against=sums old.vhd | wc -c)" -lt 1000 ]
}

@test "a difference goes on after an interruption" {
	stale
	vhd-sum --blocks old.vhd >sums
	head -c 30M /dev/urandom | dd of=new.raw conv=notrunc status=none
	send() { vhd-send --raw --checkpoint=4M --against=sums --resume="$(vhd-recv --token out)" new.raw; }
	send | head -c 15000000 | vhd-recv --parent=old.vhd out || :
	[ "$(vhd-recv --status --json out | jq -r .kind)" = difference ]
	refused 64 vhd-send --raw --resume="$(vhd-recv --token out)" new.raw
	[[ $stderr = *"with --against of UUID"* ]]
	[ "$(send | tee rest | wc -c)" -lt 21000000 ]
	vhd-recv --verify --parent=old.vhd out <rest
	[ "$(vhd-sum out | cut -d' ' -f1)" = "$(vhd-sum new.raw | cut -d' ' -f1)" ]
}

@test "a dry run against sums is exact" {
	stale
	vhd-sum --blocks old.vhd >sums
	run --separate-stderr vhd-send --against=sums --dry-run --json new.vhd
	[ "$(json .bytes)" -eq "$(vhd-send --against=sums new.vhd | wc -c)" ]
}

@test "sums that are cut, damaged or of another size are refused, and nothing comes of them" {
	stale
	vhd-sum --blocks old.vhd >good
	local e
	for e in '$d' '3d' '5y/0123456789abcdef/123456789abcdef0/' '1s/209715200/4/' '1s/1/2/' '7s/$/ 99999/' '8s/$/ x/' 's/end/eno/'; do
		sed "$e" good >sums
		! cmp -s good sums || fail "$e changes nothing"
		run --separate-stderr bash -c 'vhd-send --against=sums new.vhd | vhd-recv --parent=old.vhd out; exit "${PIPESTATUS[0]}"'
		assert_status 65
		[ ! -e out ] || fail "$e"
	done
	refused 66 vhd-send --against=gone new.vhd
	refused 64 vhd-send --against=good --from=old.vhd new.vhd
}
