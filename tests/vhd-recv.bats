# SPDX-License-Identifier: BSD-2-Clause
# vhd-recv: a good stream becomes the disk that was sent, anything else becomes nothing.
load helper
load disks
load streams

setup() {
	workdir
}

uuid_of() {
	field "$1" foot.uid | grep -x '[0-9a-f]\{32\}'
}

# A raw disk of 64 bytes: its stream has about 600 bytes.
small_stream() {
	printf '%-64s' "The smallest stream that holds data" >tiny.raw
	vhd-send --raw tiny.raw >s
	rm tiny.raw
}

# not_accepted STREAM [OPTION]…: 76, a message, no file.
not_accepted() {
	local before
	before=$(ls -A .)
	run --separate-stderr timeout "$patience" vhd-recv "${@:2}" out.vhd <"$1"
	assert_status 76
	[ -n "$stderr" ] || fail "no message"
	[ -z "$output" ] || fail "a receipt for a refused stream"
	[ "$(ls -A .)" = "$before" ] || fail "something is left behind" "$(ls -A .)"
}

@test "a whole disk: same content, identity and type" {
	local t
	for t in dynamic fixed; do
		model make $t.vhd --kind=$t --size=9M --fill=50:4K --raw=$t.raw
		vhd-send $t.vhd | vhd-recv copy.vhd
		is_raw copy.vhd $t.raw
		sound --strict copy.vhd
		[ "$(field copy.vhd foot.type)" = "$(field $t.vhd foot.type)" ]
		[ "$(uuid_of copy.vhd)" = "$(uuid_of $t.vhd)" ]
		rm copy.vhd $t.raw
	done
}

@test "a whole chain becomes one dynamic disk" {
	chain src
	vhd-send src/child.avhd | vhd-recv copy.vhd
	is_raw copy.vhd src/disk.raw
	[ "$(field copy.vhd foot.type)" = 3 ]
}

@test "any type becomes any type" {
	local to
	model make dynamic.vhd --size=5M --fill=50:4K --raw=raw
	model make fixed.vhd --kind=fixed --size=5M --fill=50:4K --raw=fixed.raw
	cmp raw fixed.raw
	for to in dynamic fixed raw; do
		vhd-send dynamic.vhd | vhd-recv --type=$to out
		[ "$(vhd-sum out | cut -d' ' -f1)" = "$(vhd-sum raw | cut -d' ' -f1)" ]
		rm out
		vhd-send fixed.vhd | vhd-recv --type=$to out
		[ "$(vhd-sum out | cut -d' ' -f1)" = "$(vhd-sum raw | cut -d' ' -f1)" ]
		rm out
		vhd-send --raw raw | vhd-recv --type=$to out
		[ "$(vhd-sum out | cut -d' ' -f1)" = "$(vhd-sum raw | cut -d' ' -f1)" ]
		rm out
	done
	vhd-send --raw raw | vhd-recv out
	cmp raw out
}

@test "the block size is kept" {
	model make disk.vhd --size=9M --block=64K --fill=50:4K --raw=raw
	vhd-send disk.vhd | vhd-recv copy.vhd
	is_raw copy.vhd raw
	[ "$(field copy.vhd head.block)" -eq 65536 ]
}

@test "a new identity on demand" {
	model make disk.vhd --size=2M --fill=5:4K --raw=raw
	vhd-send disk.vhd | vhd-recv --new-uuid copy.vhd
	[ "$(uuid_of copy.vhd)" != "$(uuid_of disk.vhd)" ]
	is_raw copy.vhd raw
}

@test "an increment becomes a child of the base here" {
	chain src
	mkdir dst
	vhd-send src/base.vhd | vhd-recv dst/base.vhd
	vhd-send --from=src/base.vhd src/child.avhd | vhd-recv --parent=dst/base.vhd dst/child.avhd
	rm -r src/base.vhd
	is_raw dst/child.avhd src/disk.raw
	[ "$(uuid_of dst/child.avhd)" = "$(uuid_of src/child.avhd)" ]
	vhd-merge --delete dst/child.avhd
	is_raw dst/base.vhd src/disk.raw
}

@test "an increment in another folder than its parent, under other names" {
	chain src
	mkdir 'a b' $'c\nd'
	vhd-send src/base.vhd | vhd-recv 'a b/ü base'
	vhd-send --from=src/base.vhd src/child.avhd |
		vhd-recv --verify --parent='a b/ü base' -- $'c\nd/-child'
	rm -r src/base.vhd
	run vhd-info --json --parent-dir=. --chain $'c\nd/-child'
	assert_status 0
	vhd-convert --parent-dir=. --type=raw $'c\nd/-child' out.raw
	cmp out.raw src/disk.raw
}

@test "an increment over two layers, and one on the other" {
	chain src
	(
		cd src || exit
		cp disk.raw mid.raw
		model make leaf.avhd --parent=child.avhd --fill=20:512 --seed=9 --raw=disk.raw
	)
	mkdir one two
	vhd-send src/base.vhd | vhd-recv one/base.vhd
	cp one/base.vhd two
	vhd-send --from=src/base.vhd src/leaf.avhd | vhd-recv --parent=one/base.vhd one/leaf.avhd
	is_raw one/leaf.avhd src/disk.raw
	vhd-send --from=src/base.vhd src/child.avhd | vhd-recv --parent=two/base.vhd two/child.avhd
	vhd-send --from=src/child.avhd src/leaf.avhd | vhd-recv --parent=two/child.avhd two/leaf.avhd
	is_raw two/leaf.avhd src/disk.raw
	is_raw two/child.avhd src/mid.raw
}

@test "zeros of an increment hide the parent's data" {
	mkdir src dst
	model make src/base.vhd --size=4M --fill=64:64K --seq --zeros=0 --raw=raw
	model make src/child.avhd --parent=src/base.vhd --seed=2 --fill=20:64K --zeros=1 --raw=raw
	# zeros that are stored, and zeros that are holes
	fallocate -d -o 0 -l 2M src/child.avhd || skip "needs a file system with holes"
	vhd-send src/base.vhd | vhd-recv dst/base.vhd
	vhd-send --from=src/base.vhd src/child.avhd | vhd-recv --verify --parent=dst/base.vhd dst/child.avhd
	is_raw dst/child.avhd raw
}

@test "an increment on a raw base" {
	model make disk.vhd --size=4M --fill=30:4K --raw=base.raw
	cp base.raw disk.raw
	model make child.avhd --raw-parent --parent=base.raw --fill=20:4K --seed=5 --raw=disk.raw
	mkdir dst
	vhd-send --from=base.raw child.avhd >inc
	cp base.raw dst
	vhd-recv --parent=dst/base.raw dst/child.avhd <inc
	vhd-convert --type=raw dst/child.avhd out
	cmp out disk.raw
	vhd-send --verify-base --from=base.raw child.avhd >inc
	vhd-recv --verify-base --parent=dst/base.raw dst/again.avhd <inc
	printf x | dd of=dst/base.raw bs=1 seek=5 conv=notrunc status=none
	run --separate-stderr vhd-recv --verify-base --parent=dst/base.raw dst/no.avhd <inc
	assert_status 65
}

qemu_sha() {
	qemu-img convert -O raw --image-opts "driver=vpc,force-size-calc=current_size,file.driver=file,file.filename=$1" q.raw
	sha q.raw
}

@test "real disks arrive as they are to the guest" {
	corpus dfvfs/ext2.vhd dfvfs/fat-parent.vhd dfvfs/ntfs-dynamic.vhd dfvfs/ntfs-fixed.vhd \
		go-vhd/qemu.vhd go-vhd/vbox.vhd go-vhd/win8.1-1GB.vhd go-vhd/win8.vhd go-vhd/xapi.vhd \
		vhd-forensic/minimal.vhd vhd-forensic/original-size-mismatch.vhd
	local f
	mkdir out
	for f in *.vhd; do
		vhd-send "$f" | vhd-recv --verify "out/$f"
		model cmp "$f" "out/$f"
		sound "out/$f"
		# Others see the same, where they are at hand; a size that no geometry has needs to be told.
		[ "$f" != win8.1-1GB.vhd ] || continue # 1 GiB of zeros
		! command -v 7zz >/dev/null ||
			[ "$(7zz x -so -tvhd "$f" 2>/dev/null | sha256sum)" = "$(7zz x -so -tvhd "out/$f" 2>/dev/null | sha256sum)" ] || fail "$f: 7zz"
		! command -v qemu-img >/dev/null ||
			[ "$(qemu_sha "$f")" = "$(qemu_sha "out/$f")" ] || fail "$f: qemu-img"
	done
	# 127 GiB
	corpus qemu/virtualpc-dynamic.vhd
	vhd-send virtualpc-dynamic.vhd | vhd-recv out/virtualpc-dynamic.vhd
	[ "$(vhd-sum virtualpc-dynamic.vhd | cut -d' ' -f1)" = "$(vhd-sum out/virtualpc-dynamic.vhd | cut -d' ' -f1)" ]
}

@test "real chains arrive as they are to the guest" {
	need 7zz
	corpus dfvfs/fat-parent.vhd dfvfs/fat-differential.vhd dfvfs/ntfs-parent.vhd dfvfs/ntfs-differential.vhd \
		go-vhd/win8.vhd go-vhd/win8-child.vhd dfvfs/image.vhd dfvfs/image-differential.vhd
	local p c
	mkdir out
	while read -r p c; do
		vhd-send "$p" | vhd-recv "out/$p"
		vhd-send --from="$p" "$c" | vhd-recv --verify --parent="out/$p" "out/$c"
		model cmp "$c" "out/$c"
		model cmp "$p" "out/$p"
		# Edited by hand: 7-Zip refuses its checksums.
		[ "$p" != image.vhd ] || continue
		[ "$(7zz x -so -tvhd "$c" | sha256sum)" = "$(7zz x -so -tvhd "out/$c" | sha256sum)" ]
	done <<-END
		fat-parent.vhd fat-differential.vhd
		ntfs-parent.vhd ntfs-differential.vhd
		win8.vhd win8-child.vhd
		image.vhd image-differential.vhd
	END
}

@test "qemu-img reads what arrives" {
	need qemu-img
	model make disk.vhd --size=9M --fill=50:4K --raw=raw
	vhd-send disk.vhd | vhd-recv copy.vhd
	qemu-img convert -f vpc -O raw copy.vhd out
	cmp out raw
}

@test "sender and receiver agree in their receipts" {
	chain src
	vhd-send --receipt=sent src/child.avhd | vhd-recv --quiet --receipt=got copy.vhd >printed
	cmp got printed
	local k
	for k in version kind uuid size content_sum stream_sum bytes records data_bytes zero_bytes; do
		[ "$(jq ".$k" sent)" = "$(jq ".$k" got)" ] || fail "$k"
	done
	run cat got
	[ "$(json .file)" = copy.vhd ]
	[ "$(json .content_sum)" = "$(vhd-sum copy.vhd | cut -d' ' -f1)" ]
	[ "$(jq .parent got)" = null ]
	[ "$(wc -l <got)" -eq 1 ]
}

@test "through a file, a FIFO, and compressed" {
	chain src
	vhd-send src/base.vhd >s
	vhd-recv a.vhd <s
	mkfifo f
	vhd-send --compress src/base.vhd >f 3>&- &
	vhd-recv b.vhd <f
	is_raw a.vhd src/base.raw
	is_raw b.vhd src/base.raw
}

@test "through what people put into a pipe" {
	local between
	chain src
	for between in "tee copy" "pv -q" "pv -q -L 20m" "mbuffer -q -m 1M" "zstd -q -T2 | zstd -dcq" \
		"dd bs=333 status=none" "xz -0 | xz -dc"; do
		need "${between%% *}"
		vhd-send src/base.vhd | eval "$between" | vhd-recv --force out.vhd || fail "$between"
		is_raw out.vhd src/base.raw || fail "$between"
	done
	vhd-stream verify copy
}

@test "what is no file is not replaced" {
	small_stream
	mkdir dir
	mkfifo pipe
	local name
	for name in dir pipe /dev/null; do
		refused 73 vhd-recv --type=raw $name <s
		[[ $stderr == *"$name: exists and is no regular file"* ]]
		refused 73 vhd-recv --force --type=raw $name <s
	done
	[ -d dir ] && [ -p pipe ] && [ -c /dev/null ]
}

@test "a slow stream in small pieces" {
	chain src
	vhd-send src/base.vhd | "$python" -c '
import sys
while True:
    b = sys.stdin.buffer.read(997)
    if not b: break
    sys.stdout.buffer.write(b); sys.stdout.buffer.flush()' | vhd-recv a.vhd
	is_raw a.vhd src/base.raw
}

@test "zeros take no space" {
	local t
	vhd-create --size=512M disk.vhd
	for t in dynamic fixed raw; do
		vhd-send disk.vhd | vhd-recv --type=$t out
		[ "$(du -k out | cut -f1)" -lt 200 ] || fail "$t: $(du -k out)"
		rm out
	done
	model make some.vhd --kind=fixed --size=64M --fill=4:4K --raw=raw
	vhd-send some.vhd | vhd-recv out
	is_raw out raw
	[ "$(du -k out | cut -f1)" -lt 600 ] || fail "$(du -k out)"
}

@test "zeros take no space on XFS, which takes some ahead of a file that grows" {
	need mkfs.xfs
	needs_root
	model make some.vhd --size=64M --fill=1000:4K --raw=raw
	truncate -s 400M fs.img
	mkfs.xfs -q fs.img
	mkdir fs
	run unshare -m sh -ec '
		mount -o loop fs.img fs || exit 99
		vhd-send some.vhd | vhd-recv -q fs/out
		vhd-sum some.vhd fs/out
		sync -f fs
		du -k fs/out >du'
	[ "$status" -ne 99 ] || skip "cannot mount here"
	assert_status 0
	[ "$(cut -f1 du)" -lt 10000 ] || fail "$(cat du)"
}

@test "every truncation is refused" {
	small_stream
	"$python" - "$(stat -c %s s)" <<-'END'
		import os, subprocess, sys
		data = open('s', 'rb').read()
		for n in range(len(data)):
		    p = subprocess.run(['vhd-recv', 'out'], input=data[:n], capture_output=True)
		    assert p.returncode == 76, (n, p.returncode, p.stderr)
		    assert p.stderr and not p.stdout, n
		    assert os.listdir('.') == ['s'], (n, os.listdir('.'))
	END
	vhd-recv out <s
}

@test "every flipped bit is refused" {
	small_stream
	"$python" - <<-'END'
		import os, subprocess, sys
		data = open('s', 'rb').read()
		for n in range(len(data) * 8):
		    bad = bytearray(data)
		    bad[n >> 3] ^= 1 << (n & 7)
		    p = subprocess.run(['vhd-recv', 'out'], input=bad, capture_output=True)
		    assert p.returncode == 76, (n, p.returncode, p.stderr)
		    assert p.stderr and not p.stdout, n
		    assert os.listdir('.') == ['s'], (n, os.listdir('.'))
	END
	vhd-recv out <s
}

@test "flipped bits and cuts of a compressed increment are refused" {
	chain src
	vhd-send --compress --from=src/base.vhd src/child.avhd >s
	"$python" - <<-'END'
		import os, random, subprocess
		data = open('s', 'rb').read()
		rnd = random.Random(5)
		for i in range(400):
		    bad = bytearray(data)
		    n = rnd.randrange(len(data))
		    if i & 1:
		        bad[n] ^= 1 << rnd.randrange(8)
		    else:
		        del bad[n:]
		    p = subprocess.run(['vhd-recv', '--parent=src/base.vhd', 'out'], input=bad, capture_output=True)
		    assert p.returncode == 76, (i, n, p.returncode, p.stderr)
		    assert sorted(os.listdir('.')) == ['s', 'src'], (n, os.listdir('.'))
	END
	vhd-recv --parent=src/base.vhd src/out <s
	is_raw src/out src/disk.raw
}

@test "something after the END is refused" {
	small_stream
	printf x >>s
	not_accepted s
	small_stream
	cat s s >t
	mv t s
	not_accepted s
}

@test "records that are lost, exchanged, repeated or changed are refused" {
	chain src
	rm src/*.raw
	vhd-send src/base.vhd >good
	dump good >/dev/null
	local last e
	last=$(($(dump --records good | wc -l) - 1))
	# With right numbers, sums and checksums: only the order and the content are wrong.
	for e in drop:0 drop:1 drop:5 drop:$last swap:0 swap:2 repeat:0 repeat:1 repeat:3 repeat:$last \
		type:2:3:1 type:2:99:1 type:1:0:1 type:2:2:4 type:2:2:3 off:2:512 off:3:99999999999999 \
		len:2:512 len:2:18446744073709551615 insert:1:77:1:10 insert:2:1:1:0 insert:4:5:1:0 \
		insert:1:4:1:0 seq:2:3 seq:2:18446744073709551615 wire:$last:4000 \
		sum:$last:00112233445566778899aabbccddeeff incompat:2 incompat:2147483648 version:2 version:0 \
		field:0:1:02000000 field:0:5:09000000 field:0:6:03000000 field:0:6:00000080 \
		field:0:2:ffffffffffffffff field:0:999:00 field:0:3:00 \
		field:$last:34:00000000000000000000000000000000 field:$last:35:0000000000000000; do
		dump --remake s "$e" good
		echo "$e"
		run dump s
		assert_status 76
		not_accepted s
	done
	# What is not critical may be unknown.
	dump --remake s insert:2:77:0:1000 good
	rm good
	vhd-recv out <s
	model cmp out src/base.vhd
}

@test "the same edits of an increment are refused" {
	chain src
	vhd-send --from=src/base.vhd src/child.avhd >good
	local last e
	last=$(($(dump --records good | wc -l) - 1))
	for e in drop:0 drop:1 drop:$last swap:2 repeat:2 type:2:3:1 off:3:512 off:1:1 off:3:99999999999999 \
		field:0:1:05000000 field:$last:36:ff00000000000000 field:0:2:0002000000000000; do
		dump --remake s "$e" good
		echo "$e"
		run dump s
		assert_status 76
		not_accepted s --parent=src/base.vhd
	done
}

@test "a record of another stream of the same disk is refused" {
	chain src
	vhd-send src/base.vhd >a
	vhd-send src/base.vhd >b
	# The same positions, the same records: only the stream's id is another.
	local pos
	for pos in $(dump --records a | cut -d' ' -f2); do
		{ head -c "$pos" a; tail -c +$((pos + 1)) b; } >s
		not_accepted s
	done
}

@test "an increment needs its base, a whole disk has none" {
	chain src
	vhd-send --from=src/base.vhd src/child.avhd >inc
	vhd-send src/base.vhd >whole
	run --separate-stderr vhd-recv out <inc
	assert_status 64
	[[ $stderr == *--parent=* ]]
	run --separate-stderr vhd-recv --parent=src/base.vhd out <whole
	assert_status 64
	run --separate-stderr vhd-recv --parent=src/gone.vhd out <inc
	assert_status 66
	run --separate-stderr vhd-recv --parent=src/base.vhd --type=fixed out <inc
	assert_status 64
	nothing_left inc src whole
}

@test "another disk is not the base" {
	chain src
	vhd-send --from=src/base.vhd src/child.avhd >inc
	model make other.vhd --size=8M --fill=30:4K --seed=50
	run --separate-stderr vhd-recv --parent=other.vhd out <inc
	assert_status 65
	[[ $stderr == *"not the base"* ]]
	run --separate-stderr vhd-recv --parent=src/child.avhd out <inc
	assert_status 65
	nothing_left inc src other.vhd
}

@test "a base of another size is refused" {
	chain src
	vhd-send --from=src/base.vhd src/child.avhd >inc
	model make other.vhd --size=9M --uuid="$(uuid_of src/base.vhd)"
	run --separate-stderr vhd-recv --parent=other.vhd out <inc
	assert_status 65
	[[ $stderr == *"not the base"* ]]
	nothing_left inc src other.vhd
}

@test "a base that was changed since is refused, if asked" {
	chain src
	vhd-send --verify-base --from=src/base.vhd src/child.avhd >inc
	mkdir dst
	cp src/base.vhd dst
	vhd-recv --verify-base --parent=dst/base.vhd dst/a <inc
	is_raw dst/a src/disk.raw
	model write dst/base.vhd --fill=1:512 --seed=77 --zeros=0
	run --separate-stderr vhd-recv --verify-base --parent=dst/base.vhd dst/b <inc
	assert_status 65
	[[ $stderr == *"content sum"* ]]
	[ ! -e dst/b ]
	vhd-send --from=src/base.vhd src/child.avhd >inc
	run --separate-stderr vhd-recv --verify-base --parent=src/base.vhd dst/b <inc
	assert_status 65
	[ ! -e dst/b ]
}

# forced_while COMMAND…: vhd-recv --force, and the command when half has come
forced_while() {
	vhd-send --checkpoint=1M new.vhd >s
	mkfifo fifo
	vhd-recv --force out <fifo >got 2>why 3>&- &
	local receiver=$!
	exec 5>fifo
	head -c 4000000 s >&5
	wait_for sh -c '[ "$(vhd-recv --status --json out | jq ".offset // 0")" -ge 3000000 ]'
	"$@" 5>&-
	tail -c +4000001 s >&5
	exec 5>&-
	wait "$receiver"
}

@test "--force: a disk that came into use meanwhile is not replaced" {
	local status=0
	model make new.vhd --size=8M --fill=2048:4K
	vhd-create -q --size=8M out
	cp out before
	forced_while hold out write || status=$?
	[ $status -eq 75 ]
	grep locked why
	cmp out before
	# The same command goes on.
	release
	vhd-send --resume="$(vhd-recv --token out)" new.vhd | vhd-recv --force out
	model cmp out new.vhd
}

# What a merge leaves that is killed
half_merged() {
	printf 'qsm-merge 1\nchild-uuid %032d\nleaf-uuid %032d\nstate merging\nleaf %s' 0 0 "$PWD/child" >out.merging
}

@test "--force: a disk that is half merged meanwhile is not replaced" {
	local status=0
	model make new.vhd --size=8M --fill=2048:4K
	vhd-create -q --size=8M out
	cp out before
	forced_while half_merged || status=$?
	[ $status -eq 73 ]
	grep 'half merged' why
	cmp out before
}

@test "a signal ends it while zeros are written to a million blocks" {
	vhd-create -q --size=2040G base.vhd
	vhd-snap -q --output=child base.vhd >/dev/null
	vhd-send --from=base.vhd child >good
	dump --remake s "insert:1:3:1:0,len:1:$((2040 << 30))" good
	local status=0
	vhd-recv --parent=base.vhd out <s 3>&- &
	local receiver=$!
	wait_for sh -c '[ "$(stat -c %s .out.partial.tmp)" -gt 2000000000 ]'
	SECONDS=0
	kill -TERM $receiver
	wait $receiver || status=$?
	[ $status -eq 75 ]
	[ $SECONDS -lt 30 ]
	nothing_left base.vhd child good s
}

@test "a folder that is exchanged while two disks of one name arrive" {
	local status=0
	mkdir A B
	ln -s A dst
	mkfifo first second
	head -c 8M /dev/urandom >a.raw
	head -c 8M /dev/urandom >b.raw
	vhd-send --raw --checkpoint=1M a.raw >a
	vhd-send --raw --checkpoint=1M b.raw >b
	vhd-recv --type=raw dst/out <first 3>&- &
	local one=$!
	exec 5>first
	head -c 7000000 a >&5
	wait_for sh -c '[ "$(vhd-recv --status --json A/out | jq ".offset // 0")" -ge 6000000 ]'
	ln -sfn B dst
	vhd-recv --type=raw dst/out <second 3>&- 5>&- &
	local two=$!
	exec 6>second
	head -c 3000000 b >&6
	wait_for sh -c '[ "$(vhd-recv --status --json B/out | jq ".offset // 0")" -ge 2000000 ]'
	tail -c +7000001 a >&5
	exec 5>&-
	wait $one || status=$?
	[ $status -eq 73 ]
	[ ! -e B/out ]
	tail -c +3000001 b >&6
	exec 6>&-
	wait $two
	cmp B/out b.raw
	[ "$(ls -A B)" = out ]
	# What came first can be gone on with where it lies.
	vhd-send --raw --resume="$(vhd-recv --token A/out)" a.raw | vhd-recv --type=raw A/out
	cmp A/out a.raw
}

@test "an existing file stays, unless forced" {
	model make disk.vhd --size=2M --fill=5:4K --raw=raw
	vhd-send disk.vhd >s
	echo precious >out
	run --separate-stderr vhd-recv out <s
	assert_status 73
	[ "$(cat out)" = precious ]
	head -c 2000 s >cut
	run --separate-stderr vhd-recv --force out <cut
	assert_status 76
	[ "$(cat out)" = precious ]
	vhd-recv --force out <s
	is_raw out raw
}

@test "a name that FILE cannot have is refused before the first byte" {
	local long
	long=$(printf '%0256d' 7)
	chain src
	vhd-send src/base.vhd >s
	refused 73 vhd-recv gone/out <s
	[[ $stderr = *"gone/out: cannot create: No such file"* ]]
	refused 73 vhd-recv src/base.vhd/out <s
	refused 73 vhd-recv out/ <s
	refused 73 vhd-recv "$long" <s
	[[ $stderr = *"File name too long"* ]]
	refused 64 vhd-recv "" <s
	nothing_left s src
}

@test "the base cannot be replaced by its own child" {
	chain src
	vhd-send --from=src/base.vhd src/child.avhd >inc
	ln -s src/base.vhd link
	local f
	for f in src/base.vhd src/../src/base.vhd link; do
		unchanged src/base.vhd -- vhd-recv --force --parent=src/base.vhd "$f" <inc
		assert_status 64
	done
}

@test "an existing receipt stops it before the work" {
	model make disk.vhd --size=2M
	vhd-send disk.vhd >s
	echo precious >r
	run --separate-stderr vhd-recv --receipt=r out <s
	assert_status 73
	nothing_left disk.vhd s r
}

@test "a receipt that cannot be written stops it before the work" {
	vhd-create --size=8M disk.vhd
	vhd-send disk.vhd >s
	mkdir dir
	refused 73 vhd-recv --receipt=gone/r out <s
	refused 73 vhd-recv --receipt=disk.vhd/r out <s
	refused 73 vhd-recv --receipt=dir out <s
	refused 73 vhd-send --receipt=gone/r disk.vhd
	refused 73 vhd-send --force --receipt=dir disk.vhd
	nothing_left disk.vhd s dir
}

@test "no receipt takes the place of a disk" {
	chain src
	vhd-send --from=src/base.vhd src/child.avhd >s
	sha src/base.vhd src/child.avhd >before
	refused 64 vhd-send --force --receipt=src/base.vhd src/child.avhd
	refused 64 vhd-send --force --receipt=src/child.avhd --from=src/base.vhd src/child.avhd
	refused 64 vhd-recv --force --parent=src/base.vhd --receipt=src/base.vhd out <s
	refused 64 vhd-recv --force --onto --receipt=src/base.vhd src/base.vhd <s
	refused 64 vhd-recv --parent=src/base.vhd --receipt=src/../out out <s
	[ "$(sha src/base.vhd src/child.avhd)" = "$(cat before)" ]
	nothing_left before s src
}

@test "a receipt through a link leaves the link" {
	vhd-create --size=8M disk.vhd
	ln -s r link
	vhd-send --receipt=link disk.vhd | vhd-recv --quiet out >got
	[ -L link ] && [ "$(jq .stream_sum r)" = "$(jq .stream_sum got)" ]
	refused 73 vhd-send --receipt=link disk.vhd
	vhd-send --force --receipt=link disk.vhd | vhd-recv --quiet --force out >got
	[ -L link ] && [ "$(jq .stream_sum r)" = "$(jq .stream_sum got)" ]
	vhd-send --receipt=/dev/fd/5 disk.vhd 5>r2 >s
	[ "$(jq .bytes r2)" -eq "$(stat -c %s s)" ]
}

@test "a full disk" {
	head -c 8M /dev/urandom >disk.raw
	vhd-send --raw disk.raw >s
	local t
	for t in dynamic fixed raw; do
		run --separate-stderr small_fs 4M "vhd-recv --type=$t small/out <s; r=\$?; ls -A small; exit \$r"
		assert_status 73
		[ -z "$output" ] || fail "left behind"
		[[ $stderr == *space* ]]
	done
}

@test "a full disk, while the sender is silent" {
	head -c 8M /dev/urandom >disk.raw
	vhd-send --raw disk.raw >s
	mkfifo pipe
	{ head -c 5500000 s || :; exec sleep 600; } >pipe 3>&- &
	local sender=$! began=$SECONDS
	run --separate-stderr small_fs 4M "vhd-recv --type=raw small/out <pipe"
	kill $sender
	assert_status 73
	[[ $stderr == *space* ]]
	[ $((SECONDS - began)) -lt 300 ]
}

@test "what came before the stream is refused does not hide that it cannot be written" {
	head -c 8M /dev/urandom >disk.raw
	vhd-send --raw disk.raw >s
	head -c 8388000 s >cut
	run --separate-stderr small_fs 4M "vhd-recv --type=raw small/out <cut"
	assert_status 73
	[[ $stderr == *space* ]]
}

@test "without threads it goes as well" {
	chain src
	local n
	vhd-send src/base.vhd >whole
	vhd-send --compress --from=src/base.vhd src/child.avhd >inc
	for n in 1 2; do
		faulty FAULT_THREAD=$n vhd-recv -q --type=raw b$n.raw <whole
		cmp b$n.raw src/base.raw
		faulty FAULT_THREAD=$n vhd-recv -q --parent=src/base.vhd c$n.avhd <inc
		[ "$(vhd-sum c$n.avhd --parent-dir=src | cut -c-32)" = "$(vhd-sum src/child.avhd | cut -c-32)" ]
	done
}

@test "a failed sync is a failure" {
	head -c 1M /dev/urandom >disk.raw
	vhd-send --raw disk.raw >s
	run --separate-stderr faulty FAULT_SYNC=1 vhd-recv --type=dynamic out <s
	assert_status 74
	[ -z "$output" ]
	nothing_left disk.raw s
}

@test "--verify finds what the storage changed" {
	chain src
	vhd-send --from=src/base.vhd src/child.avhd >inc
	vhd-send src/base.vhd >whole
	run --separate-stderr faulty FAULT_FLIP=3 vhd-recv --verify out <whole
	assert_status 74
	[[ $stderr == *"reads back"* ]]
	run --separate-stderr faulty FAULT_FLIP=3 vhd-recv --verify --parent=src/base.vhd out <inc
	assert_status 74
	nothing_left inc src whole
	run --separate-stderr vhd-recv --verify out <whole
	[ "$(json .verified)" = true ]
}

@test "what is there and cannot be read is not taken for another disk" {
	chain src
	vhd-send --from=src/base.vhd src/child.avhd >inc
	vhd-recv -q --parent=src/base.vhd out <inc
	local n=0 sum
	sum=$(sha256sum out)
	while [ $n -lt 100 ]; do
		run --separate-stderr faulty FAULT_READ=$((n += 1)) \
			vhd-recv --parent=src/base.vhd out <inc
		[ "$status" != 0 ] || break
		assert_status 74
		[ "$(sha256sum out)" = "$sum" ]
	done
	echo "$n reads"
	[ $n -gt 3 ]
	assert_status 0
}

@test "standard streams: terminal in, closed in, closed and full out" {
	model make disk.vhd --size=2M
	vhd-send disk.vhd >s
	run on_terminal 'vhd-recv out'
	assert_status 64
	run bash -c 'vhd-recv out <s >&-'
	assert_status 74
	run bash -c 'vhd-recv out <&-'
	assert_status 74
	nothing_left disk.vhd s
	run bash -c 'vhd-recv out <s >/dev/full'
	assert_status 74
	model cmp out disk.vhd
}

@test "a signal ends it, although the sender hangs" {
	model make disk.vhd --size=4M --fill=99:4K
	mkfifo pipe
	{
		vhd-send disk.vhd | head -c 100000 || :
		exec sleep 600
	} >pipe 3>&- &
	local sender=$!
	vhd-recv out <pipe 3>&- &
	local receiver=$! status=0
	wait_for catches_term $receiver
	kill -TERM $receiver
	timeout "$patience" tail --pid=$receiver -f /dev/null
	wait $receiver || status=$?
	kill $sender
	[ $status -eq 75 ]
	nothing_left disk.vhd pipe
}

@test "what is no stream is named" {
	model make disk.vhd --size=2M --fill=9:4K
	local f
	vhd-send disk.vhd >s
	: >empty
	echo hello >text
	sed 's/$/\r/' s >crlf
	tr -d '\r' <s >nocr
	LC_ALL=C tr '\200-\377' '\000-\177' <s >seven
	for f in disk.vhd empty text crlf nocr seven; do
		run --separate-stderr vhd-recv out <$f
		assert_status 76
	done
	run --separate-stderr vhd-recv out <disk.vhd
	[[ $stderr == *vhd-send* ]]
	run --separate-stderr vhd-recv out <crlf
	[[ $stderr == *"line ends"* ]]
	run --separate-stderr vhd-recv out <seven
	[[ $stderr == *"eighth bit"* ]]
	[ ! -e out ]
}

@test "a stream that lies about sizes takes no memory" {
	model make disk.vhd --size=2M --fill=9:4K
	vhd-send disk.vhd >good
	# 64 TiB of zeros in a VHD, and no end of a raw disk
	dump --remake s field:0:2:0000000000400000 good
	MEMORY=150000 refused 65 vhd-recv out <s
	# a record of 16 MiB of which nothing comes
	{ head -c 48 good; printf '%32s'; printf '\0\0\0\1\2\0\1\0'; } >s
	MEMORY=150000 refused 76 vhd-recv out <s
	[[ $stderr == *cut* ]]
	# more than a record may have
	{ head -c 48 good; printf '%32s'; printf '\1\0\0\1\2\0\1\0'; } >s
	MEMORY=150000 refused 76 vhd-recv out <s
	[[ $stderr == *"in one record"* ]]
}

@test "a raw disk of odd size fits no VHD" {
	head -c 1000 /dev/urandom >disk.raw
	vhd-send --raw disk.raw >s
	run --separate-stderr vhd-recv --type=dynamic out <s
	assert_status 65
	[[ $stderr == *--type=raw* ]]
	vhd-recv out <s
	cmp out disk.raw
}

@test "an increment of a raw disk that has grown finds its parent" {
	mkdir dst
	head -c 4M /dev/urandom >base.raw
	cp base.raw dst
	model make child.avhd --size=4M --parent=base.raw --raw-parent --fill=20:4K
	vhd-resize -q --size=5M child.avhd
	vhd-send -q --checkpoint=1 --from=base.raw child.avhd >s
	vhd-recv --verify --parent=dst/base.raw dst/child.avhd <s
	[ "$(vhd-sum -q child.avhd | cut -c-32)" = "$(vhd-sum -q dst/child.avhd | cut -c-32)" ]
	rm dst/child.avhd
	head -c 50000 s | vhd-recv --parent=dst/base.raw dst/child.avhd || [ $? -eq 75 ]
	vhd-send -q --resume="$(vhd-recv --token dst/child.avhd)" --from=base.raw child.avhd |
		vhd-recv --parent=dst/base.raw dst/child.avhd
	[ "$(vhd-sum -q child.avhd | cut -c-32)" = "$(vhd-sum -q dst/child.avhd | cut -c-32)" ]
}

@test "text of the other side cannot play with the terminal" {
	small_stream
	dump --remake t "insert:1:6:1:0,field:1:48:4a000000,field:1:49:1b5b324a476f6e65" s
	run --separate-stderr vhd-recv out <t
	assert_status 76
	[[ $stderr == *"[2JGone"* ]]
	[[ $stderr != *$'\033'* ]]
}

@test "random damage never crashes it" {
	chain src
	vhd-send src/child.avhd >s
	"$python" - <<-'END'
		import random, subprocess
		data = open('s', 'rb').read()
		rnd = random.Random(11)
		for i in range(300):
		    bad = bytearray(data)
		    for _ in range(rnd.randrange(1, 9)):
		        n = rnd.randrange(min(len(bad), 4000 if i & 1 else len(bad)))
		        bad[n:n + rnd.randrange(9)] = rnd.randbytes(rnd.randrange(9))
		    if bad == data:
		        continue
		    p = subprocess.run(['vhd-recv', 'out'], input=bad, capture_output=True, timeout=120)
		    assert p.returncode == 76, (i, p.returncode, p.stderr)
	END
	[ ! -e out ]
}

@test "usage" {
	: >s
	refused 64 vhd-recv <s
	refused 64 vhd-recv a b <s
	refused 64 vhd-recv - <s
	refused 64 vhd-recv --type=vhdx a <s
	refused 64 vhd-recv --verify-base a <s
	nothing_left s
}

# The sizes of the writes past the page cache.
direct_writes() {
	fd=$(sed -n 's/.*openat.*O_DIRECT[,|].* = \([0-9][0-9]*\)$/\1/p' calls | head -n 1)
	[ -z "$fd" ] || sed -n "s/.*pwrite64($fd, \"\"[.]*, \([0-9][0-9]*\),.*/\1/p" calls
}

@test "a whole disk goes past the page cache, in large writes; an increment does not" {
	need strace
	chain
	head -c 12M /dev/urandom >disk.raw
	export ASAN_OPTIONS=detect_leaks=0
	# A sender that had to wait for the disk would put in checkpoints.
	vhd-send --raw disk.raw >s
	strace -f -s 0 -o calls -e trace=openat,pwrite64 vhd-recv --type=raw raw <s
	cmp raw disk.raw
	grep -q 'openat.*O_DIRECT.*= [0-9]' calls || skip "the file system has no O_DIRECT"
	[ "$(direct_writes | xargs)" = "4194304 4194304 4194304" ] || fail "$(cat calls)"
	strace -f -s 0 -o calls -e trace=openat,pwrite64 vhd-recv --type=dynamic d.vhd <s
	[ "$(direct_writes | xargs)" = "$(printf '2097152 %.0s' 1 2 3 4 5 6 | xargs)" ] || fail "$(cat calls)"
	[ "$(vhd-sum d.vhd | cut -c 1-32)" = "$(vhd-sum raw | cut -c 1-32)" ]
	vhd-send --from=base.vhd child.avhd |
		strace -f -s 0 -o calls -e trace=openat,pwrite64 vhd-recv --parent=base.vhd copy.avhd
	[ -z "$(direct_writes)" ] || fail "$(cat calls)"
}

@test "a file system that takes no writes past the page cache gets the others" {
	need strace
	head -c 16M /dev/urandom >disk.raw
	export ASAN_OPTIONS=detect_leaks=0
	# The third of a thread: only the one that writes the data makes so many.
	vhd-send --raw disk.raw >s
	strace -f -s 0 -o calls -e trace=openat,pwrite64 -e inject=pwrite64:error=EINVAL:when=3 vhd-recv --type=raw raw <s
	cmp raw disk.raw
	grep -q 'openat.*O_DIRECT.*= [0-9]' calls || skip "the file system has no O_DIRECT"
	[ "$(direct_writes | xargs)" = "4194304 4194304 4194304" ] || fail "$(cat calls)"
	[ "$(grep -c 'pwrite64(.* 4194304, ' calls)" -eq 5 ]
	grep -q 'EINVAL.*INJECTED' calls
}
