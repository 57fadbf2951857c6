# SPDX-License-Identifier: BSD-2-Clause
# vhd-check: every fault has a name, is found, and is mended where that needs no guess.
load helper
load disks

setup() {
	workdir
}

# disk [OPTION…]: disk.vhd, dynamic, its four blocks in the file, and want.raw, what it reads as
disk() {
	model make disk.vhd --size=8M --fill=60:4K --raw=want.raw "$@"
}

# pair [OPTION…]: child disk.vhd (all blocks) on base.vhd
pair() {
	model make base.vhd --size=8M --fill=60:4K --raw=want.raw
	model make disk.vhd --parent=base.vhd --fill=60:4K --raw=want.raw --seed=2 "$@"
}

# put FILE OFFSET HEX: bytes, as they are
put() {
	"$python" -c 'import sys
f = open(sys.argv[1], "r+b"); f.seek(int(sys.argv[2])); f.write(bytes.fromhex(sys.argv[3]))' "$@"
}

# zero FILE OFFSET LENGTH
zero() {
	dd if=/dev/zero of="$1" bs=1 seek="$2" count="$3" conv=notrunc status=none
}

size() {
	stat -c %s "$1"
}

# found ID [SEVERITY [FILE [OPTION…]]]: vhd-check reports it, and its status is that of the errors it reports.
found() {
	local id=$1 severity=${2:-error} file=${3:-disk.vhd} want=0
	shift $(($# < 3 ? $# : 3))
	run --separate-stderr vhd-check --json "$@" "$file"
	[ "$(jq '.files[0].errors' <<<"$output")" -eq 0 ] || want=65
	assert_status $want
	jq -e --arg i "$id" --arg s "$severity" \
		'[.files[0].faults[] | select(.id == $i and .severity == $s)] | length > 0' <<<"$output" >/dev/null ||
		fail "$severity $id is not reported"
}

# alone ID: no other error or warning
alone() {
	[ "$(jq -r '[.files[0].faults[] | select(.severity != "note") | .id] | unique | join(" ")' <<<"$output")" = "$1" ] ||
		fail "not only $1"
}

not_found() {
	run --separate-stderr vhd-check --json disk.vhd
	jq -e --arg i "$1" '[.files[0].faults[] | select(.id == $i)] | length == 0' <<<"$output" >/dev/null ||
		fail "$1 is still there"
}

# mended ID [SEVERITY]: found, mended, sound by the model too, and --undo gives the same bytes again.
mended() {
	cp disk.vhd damaged
	found "$@"
	run vhd-check --repair disk.vhd
	assert_status 0
	assert_output_has mended
	not_found "$1"
	[ -n "${garbled:-}" ] || sound disk.vhd
	cp disk.vhd repaired.vhd
	vhd-check -q --undo disk.vhd
	cmp disk.vhd damaged || fail "--undo does not give back what was there"
	[ "$(echo disk.vhd*)" = disk.vhd ] || fail "left: $(echo disk.vhd*)"
	cp repaired.vhd disk.vhd
}

# The same, and the guest sees what it always saw.
mended_whole() {
	mended "$@"
	is_raw disk.vhd want.raw
}

# left_alone ID [SEVERITY]: found, and --repair does not touch the file.
left_alone() {
	found "$@"
	unchanged disk.vhd -- vhd-check --repair disk.vhd
}

# --- the corpus and our own files ----------------------------------------------------------------

@test "a sound disk" {
	disk
	run --separate-stderr vhd-check disk.vhd
	assert_status 0
	[ "$output" = "disk.vhd: sound" ]
	[ -z "$stderr" ]
}

@test "no error and no warning in any sound file of the corpus" {
	corpus dfvfs/ext2.vhd dfvfs/fat-parent.vhd dfvfs/fat-differential.vhd dfvfs/ntfs-parent.vhd \
		dfvfs/ntfs-differential.vhd dfvfs/ntfs-dynamic.vhd dfvfs/ntfs-fixed.vhd go-vhd/qemu.vhd \
		go-vhd/vbox.vhd go-vhd/win8.vhd go-vhd/win8-child.vhd go-vhd/win8.1-1GB.vhd go-vhd/xapi.vhd \
		vhd-forensic/minimal.vhd vhd-forensic/original-size-mismatch.vhd qemu/virtualpc-dynamic.vhd
	for f in *.vhd; do
		run vhd-check --chain --json "$f"
		assert_status 0
		json '.files[0] | .errors == 0 and .warnings == 0 and .sound'
	done
}

@test "Windows 10 children without their parents are sound" {
	for f in dfvfs/fat-differential dfvfs/ntfs-differential go-vhd/win8-child; do
		corpus $f.vhd
		run vhd-check "$(basename $f).vhd"
		assert_status 0
	done
}

@test "the files that were edited by hand are damaged, and their checksums can be mended" {
	corpus dfvfs/image.vhd dfvfs/image-differential.vhd
	for f in image.vhd image-differential.vhd; do
		before=$(model sha $f)
		run vhd-check $f
		assert_status 65
		run vhd-check --repair $f
		assert_status 0
		sound $f
		[ "$(model sha $f)" = "$before" ]
	done
}

@test "no error in what qemu-img makes" {
	need qemu-img qemu-io
	for o in subformat=dynamic subformat=fixed subformat=dynamic,force_size=on; do
		rm -f q.vhd
		qemu-img create -q -f vpc -o $o q.vhd 21M
		qemu-io -f vpc -c 'write -P 7 1M 5M' q.vhd >/dev/null
		run vhd-check --json q.vhd
		assert_status 0
		json '.files[0].errors == 0 and .files[0].warnings == 0'
	done
}

@test "no error and no warning in what our tools make" {
	vhd-create --size=9M dyn.vhd
	vhd-create --type=fixed --size=3M fix.vhd
	vhd-create --size=300G --block-size=512K small.vhd
	vhd-snap --output=a.avhd dyn.vhd
	model write a.avhd --fill=30:512 --seed=3
	vhd-snap --output=b.avhd a.avhd
	model write b.avhd --fill=30:4K --seed=4
	vhd-convert -q --type=dynamic b.avhd conv.vhd
	vhd-convert -q --type=fixed b.avhd conv2.vhd
	for round in 1 2; do
		for f in *vhd; do
			run vhd-check --chain --json "$f"
			assert_status 0
			json '.files[0].errors == 0 and .files[0].warnings == 0' || fail "$f"
		done
		[ $round = 2 ] || vhd-merge -q --delete b.avhd
	done
}

@test "no error in a disk of every creator, block size and layout of the model" {
	n=0
	for o in --creator=win7 --creator=vpc --creator=tap --creator=qemu --creator=d2v --creator=none \
		--block=4K --block=512K --block=16M "--align=512 --creator=vbox" --gap=4K --entries=100; do
		n=$((n + 1))
		# shellcheck disable=SC2086
		model make d$n.vhd --size=9M --fill=40:4K $o
		# shellcheck disable=SC2086
		model make c$n.avhd --parent=d$n.vhd --fill=40:512 $o --locators=MacX,W2ku,W2ru --space=1
	done
	for f in d*.vhd c*.avhd; do
		run vhd-check --chain --json "$f"
		assert_status 0
		json '.files[0].errors == 0' || fail "$f"
	done
}

# --- footers ----------------------------------------------------------------------------------------

@test "footer-end-missing: overwritten, as XenServer leaves it while a disk is open" {
	disk
	put disk.vhd $(($(size disk.vhd) - 512)) "$(printf 'c7%.0s' $(seq 512))"
	mended_whole footer-end-missing
	[ "$(size disk.vhd)" -eq "$(size damaged)" ]
}

@test "footer-end-missing: cut off" {
	disk
	truncate -s -512 disk.vhd
	mended_whole footer-end-missing
}

@test "footer-end-missing: without a BAT nobody knows where it belongs" {
	disk
	truncate -s -512 disk.vhd
	zero disk.vhd 512 1024
	left_alone footer-end-missing
	run vhd-check --json disk.vhd
	json '.files[0].faults[] | select(.id == "footer-end-missing") | .repairable == false'
}

@test "footer-end-misplaced: bytes behind the footer are cut off" {
	disk
	head -c 1024 /dev/urandom >>disk.vhd
	mended_whole footer-end-misplaced
	[ "$(size disk.vhd)" -eq $(($(size damaged) - 1024)) ]
}

@test "footer-end-misplaced: of a fixed disk" {
	disk --kind=fixed
	printf 'some words' >>disk.vhd
	mended_whole footer-end-misplaced
}

@test "footer-end-bad-checksum" {
	disk
	put disk.vhd $(($(size disk.vhd) - 448)) 00000000
	found footer-end-bad-checksum
	alone footer-end-bad-checksum
	mended_whole footer-end-bad-checksum
}

@test "footer-end-bad-checksum of a fixed disk whose fields fit the file" {
	disk --kind=fixed
	put disk.vhd $(($(size disk.vhd) - 448)) 00000000
	mended_whole footer-end-bad-checksum
}

@test "footer-end-bad-checksum of a fixed disk whose size does not fit is left alone" {
	disk --kind=fixed
	put disk.vhd $(($(size disk.vhd) - 464)) 0000000000400000
	left_alone footer-end-bad-checksum
	assert_status 65
}

@test "footer-end-bad-version" {
	disk
	put disk.vhd $(($(size disk.vhd) - 500)) 00070000
	mended_whole footer-end-bad-version
}

@test "footer-end-bad-type" {
	disk
	put disk.vhd $(($(size disk.vhd) - 452)) 00000009
	mended_whole footer-end-bad-type
}

@test "footer-end-short: 511 bytes" {
	disk --foot511
	mended_whole footer-end-short warning
	[ $(($(size disk.vhd) % 512)) -eq 0 ]
}

@test "footer-end-short: of a fixed disk" {
	disk --kind=fixed --foot511
	mended_whole footer-end-short warning
	[ "$(size disk.vhd)" -eq $((8388608 + 512)) ]
}

@test "footer-front-missing" {
	disk
	zero disk.vhd 0 512
	mended_whole footer-front-missing
}

@test "footer-front-bad-checksum" {
	disk
	put disk.vhd 64 00000000
	mended_whole footer-front-bad-checksum
}

@test "footer-front-bad-version" {
	disk
	put disk.vhd 12 00070000
	mended_whole footer-front-bad-version
}

@test "footer-front-bad-type" {
	disk
	put disk.vhd 60 00000009
	mended_whole footer-front-bad-type
}

@test "footer-copies-differ: the end footer is believed, and the fields are named" {
	disk
	model poke disk.vhd foot.timestamp=5 foot.hidden=1 --which=end
	found footer-copies-differ
	json '.files[0].faults[0].found == "time, hidden"'
	mended_whole footer-copies-differ
	[ "$(field disk.vhd foot.timestamp)" -eq 5 ]
}

@test "footer-copies-differ: the front copy is believed when only that fits the header" {
	disk
	model poke disk.vhd foot.size=90M --which=end
	found footer-copies-differ
	mended_whole footer-copies-differ
	[ "$(field disk.vhd foot.size)" -eq 8388608 ]
}

@test "footer-none: a raw file, a short one, an empty one, a VHDX" {
	truncate -s 1M raw
	printf conectix >short
	: >empty
	for f in raw short empty; do
		found footer-none error $f
	done
	corpus dfvfs/ext2.vhdx
	found footer-none error ext2.vhdx
	assert_output_has VHDX
}

@test "footer-none: both footers lost" {
	disk
	zero disk.vhd 0 512
	zero disk.vhd $(($(size disk.vhd) - 512)) 512
	left_alone footer-none
	assert_status 65
}

@test "footer-poisoned" {
	disk --creator=tap
	put disk.vhd 0 765f706f69736f6e
	left_alone footer-poisoned
	assert_status 65
}

@test "footer-features" {
	disk
	model poke disk.vhd foot.features=1
	mended_whole footer-features warning
	[ "$(field disk.vhd foot.features)" -eq 3 ]
}

@test "footer-data-offset of a fixed disk" {
	disk --kind=fixed
	model poke disk.vhd foot.data_offset=512
	mended_whole footer-data-offset warning
}

@test "footer-reserved" {
	disk
	put disk.vhd 300 01
	put disk.vhd $(($(size disk.vhd) - 212)) 01
	model poke disk.vhd foot.hidden=0
	found footer-reserved note
}

@test "footer-saved-state" {
	disk --saved=1
	left_alone footer-saved-state warning
	assert_status 0
}

@test "footer-uuid-none" {
	disk --uuid=00000000000000000000000000000000
	left_alone footer-uuid-none warning
}

@test "a fixed disk whose guest has written a VHD to its start stays a fixed disk" {
	truncate -s 1M secret.raw
	model make trap.vhd --raw-parent --parent=secret.raw --text='.\secret.raw'
	model make disk.vhd --kind=fixed --size=1M --raw=want.raw
	dd if=trap.vhd of=disk.vhd conv=notrunc status=none
	dd if=trap.vhd of=want.raw conv=notrunc status=none
	is_raw disk.vhd want.raw
	run vhd-check disk.vhd
	assert_status 0
	run vhd-info --json disk.vhd
	json '.files[0].type == "fixed"'
}

# --- size and geometry --------------------------------------------------------------------------------

@test "size-not-sectors" {
	disk
	model poke disk.vhd foot.size=8388107
	left_alone size-not-sectors
	assert_status 65
}

@test "size-too-big" {
	disk
	model poke disk.vhd foot.size=2041G head.block=256M
	found size-too-big warning
}

@test "size-original-differs" {
	disk
	model poke disk.vhd foot.original=4M
	found size-original-differs note
	alone ""
}

@test "geometry-wrong" {
	disk
	model poke disk.vhd foot.cylinders=0 foot.heads=0 foot.spt=0
	mended_whole geometry-wrong warning
	[ "$(field disk.vhd foot.cylinders foot.heads foot.spt | tr '\n' /)" = 240/4/17/ ]
}

@test "the geometry that QEMU and Disk2vhd write for an exact size is right" {
	disk --creator=qem2
	model poke disk.vhd foot.cylinders=65535 foot.heads=16 foot.spt=255
	run vhd-check disk.vhd
	[ "$output" = "disk.vhd: sound" ]
}

@test "geometry-size-dispute" {
	disk --creator=vbox
	found geometry-size-dispute note
	alone ""
}

@test "fixed-cut" {
	disk --kind=fixed
	model poke disk.vhd foot.size=9M
	left_alone fixed-cut
	assert_status 65
}

@test "fixed-slack" {
	disk --kind=fixed
	model poke disk.vhd foot.size=7M
	found fixed-slack warning
}

# --- header ---------------------------------------------------------------------------------------------

@test "header-outside: the footer leads elsewhere, the header is where it always is" {
	disk
	model poke disk.vhd foot.data_offset=8G
	mended_whole header-outside
	[ "$(field disk.vhd foot.data_offset)" -eq 512 ]
}

@test "header-outside: and there is none" {
	disk
	model poke disk.vhd foot.data_offset=8G
	zero disk.vhd 512 1024
	left_alone header-outside
	assert_status 65
}

@test "header-missing: only the signature" {
	disk
	zero disk.vhd 512 8
	mended_whole header-missing
}

@test "header-missing: all of it" {
	disk
	zero disk.vhd 512 1024
	left_alone header-missing
	assert_status 65
}

@test "header-bad-version" {
	disk
	put disk.vhd $((512 + 24)) 00080000
	mended_whole header-bad-version
}

@test "header-bad-checksum: all fields fit the file" {
	disk
	put disk.vhd $((512 + 36)) 00000000
	mended_whole header-bad-checksum
}

@test "header-bad-checksum: a field that cannot be is not sealed" {
	disk
	put disk.vhd $((512 + 32)) 00210000
	put disk.vhd $((512 + 28)) 00000009
	left_alone header-bad-checksum
	assert_status 65
}

@test "header-bad-checksum and header-bat-offset, where the entries tell that it stood behind the header" {
	disk
	put disk.vhd $((512 + 16)) 00000000000000ff
	zero disk.vhd $((512 + 36)) 4
	found header-bat-offset
	mended_whole header-bad-checksum
}

@test "header-bat-offset: nothing is guessed when there is nothing but free entries" {
	model make disk.vhd --size=8M --fill=9:4K --gap=4K
	"$python" - <<-'END'
		f = open('disk.vhd', 'r+b')
		f.seek(1536); f.write(b'\xff' * 4096)
	END
	put disk.vhd $((512 + 16)) 0000000000000001
	left_alone header-bat-offset
	assert_status 65
}

@test "header-unused-offset" {
	disk
	model poke disk.vhd head.data_offset=0
	mended_whole header-unused-offset warning
}

@test "header-reserved" {
	disk
	model poke disk.vhd head.reserved1=7
	found header-reserved note
	alone ""
}

@test "header-block-size: the checksum tells which it was" {
	disk
	put disk.vhd $((512 + 32)) 00210000
	mended_whole header-block-size
	[ "$(field disk.vhd head.block)" -eq 2097152 ]
}

@test "header-block-size: size and number of entries tell which it was" {
	disk
	"$python" - <<-'END'
		import struct
		f = open('disk.vhd', 'r+b')
		f.seek(512); h = bytearray(f.read(1024))
		h[32:36] = struct.pack('>I', 0x210000)
		h[36:40] = bytes(4)
		h[36:40] = struct.pack('>I', ~sum(h) & 0xffffffff)
		f.seek(512); f.write(h)
	END
	mended_whole header-block-size
}

@test "header-entries: too few, and the table has more" {
	disk
	model poke disk.vhd head.entries=2 2>/dev/null || put disk.vhd $((512 + 28)) 00000002
	mended_whole header-entries
	[ "$(field disk.vhd head.entries)" -eq 4 ]
}

@test "header-entries: more than the file can hold" {
	disk
	model poke disk.vhd head.entries=4294967295
	mended_whole header-entries
}

@test "header-entries: the disk is larger than any table could make it" {
	disk
	model poke disk.vhd foot.size=64G
	left_alone header-entries
	assert_status 65
}

@test "header-bat-offset: the checksum tells that it stood behind the header" {
	disk
	put disk.vhd $((512 + 16)) 00000000ffff0600
	mended_whole header-bat-offset
}

@test "header-parent-unused" {
	disk
	model poke disk.vhd head.puid=hex:000102030405060708090a0b0c0d0e0f
	found header-parent-unused warning
}

# --- BAT ------------------------------------------------------------------------------------------------

# lost_block N: block N of want.raw becomes zeros
lost_block() {
	dd if=/dev/zero of=want.raw bs=2M seek="$1" count=1 conv=notrunc status=none
}

@test "bat-out-of-file: the block is lost, the others are not" {
	disk
	model poke disk.vhd bat.2=500000
	mended bat-out-of-file
	lost_block 2
	is_raw disk.vhd want.raw
	found bat-out-of-file error damaged
	json '.files[0].faults[] | select(.id == "bat-out-of-file") | .block == 2 and .lost == "disk bytes 4194304-6291455"'
}

@test "a lost block stays in the file, and is reported with its offset" {
	disk
	at=$(($(field disk.vhd bat.2) * 512))
	model poke disk.vhd bat.2=500000
	found orphan-block warning
	json ".files[0].faults[] | select(.id == \"orphan-block\") | .offset == $at"
	vhd-check -q --repair disk.vhd || :
	found orphan-block warning
	json ".files[0].faults[] | select(.id == \"orphan-block\") | .offset == $at"
}

@test "a lost block of a child reads as the parent" {
	pair
	model poke disk.vhd bat.1=500000
	mended bat-out-of-file
	vhd-convert -q --type=raw base.vhd base.raw
	dd if=base.raw of=want.raw bs=2M skip=1 seek=1 count=1 conv=notrunc status=none
	is_raw disk.vhd want.raw
}

@test "bat-wraps" {
	disk
	model poke disk.vhd bat.0=4294967294
	mended bat-wraps
	lost_block 0
	is_raw disk.vhd want.raw
}

@test "bat-in-metadata: footer, header, BAT" {
	disk
	cp disk.vhd good.vhd
	for e in 0 1 2 3; do
		cp good.vhd disk.vhd
		model poke disk.vhd bat.3=$e
		mended bat-in-metadata
	done
	lost_block 3
	is_raw disk.vhd want.raw
}

@test "bat-in-metadata: a locator that can still be read" {
	pair
	model poke disk.vhd bat.3=$(($(field disk.vhd loc.0.offset) / 512))
	found bat-in-metadata
	assert_output_has locator
}

@test "neighbouring entries with the same fault are one report" {
	model make disk.vhd --size=1G --fill=3:4K
	zero disk.vhd 1536 2048
	found bat-in-metadata
	json '[.files[0].faults[] | select(.id == "bat-in-metadata")] | length == 1 and .[0].blocks == 512'
}

@test "bat-overlap: the same place twice: both keep what they show" {
	disk
	e=$(field disk.vhd bat.1)
	model poke disk.vhd bat.3="$e"
	model cat disk.vhd --out=want.raw
	mended bat-overlap
	is_raw disk.vhd want.raw
	[ "$(field disk.vhd bat.1)" -eq "$e" ]
	found bat-overlap error damaged
	json '.files[0].faults[] | select(.id == "bat-overlap") | .lost | test("block 1\\).*block 3\\)")'
}

@test "bat-overlap: in part" {
	disk
	model poke disk.vhd bat.3=$(($(field disk.vhd bat.1) + 8))
	model cat disk.vhd --out=want.raw
	garbled=yes # data was taken for a bitmap, and is kept as it was
	mended bat-overlap
	is_raw disk.vhd want.raw
}

@test "bat-overlap: three in one place" {
	disk
	model poke disk.vhd bat.3="$(field disk.vhd bat.0)" bat.2=$(($(field disk.vhd bat.0) + 1))
	model cat disk.vhd --out=want.raw
	garbled=yes
	mended bat-overlap
	is_raw disk.vhd want.raw
}

@test "bat-overlap: no space for copies: nothing is changed" {
	truncate -s 100K image
	small_fs 16M 'cd small
		model() { '"$python $top/tests/model/vhdmodel.py"' "$@"; }
		model make disk.vhd --size=8M --fill=60:4K
		model poke disk.vhd bat.3=$(model get disk.vhd bat.1) bat.2=$(model get disk.vhd bat.0)
		truncate -s 5M fill; dd if=/dev/urandom of=fill bs=1M count=6 status=none || :
		sha256sum disk.vhd >sum
		vhd-check --repair disk.vhd; s=$?
		sha256sum -c sum && [ $s -eq 73 ] && [ "$(echo disk.vhd*)" = disk.vhd ]'
}

@test "bat-beyond-disk" {
	model make disk.vhd --size=8M --fill=60:4K --entries=10
	put disk.vhd $((1536 + 4 * 7)) 00001234
	left_alone bat-beyond-disk warning
}

@test "block-cut: what is missing becomes zeros" {
	disk
	truncate -s -1M disk.vhd
	"$python" - <<-'END'
		import struct
		f = open('disk.vhd', 'rb'); f.seek(1536)
		bat = struct.unpack('>4I', f.read(16))
		last = max(range(4), key=lambda b: bat[b])
		f.seek(0, 2)
		have = f.tell() - bat[last] * 512 - 512
		w = open('want.raw', 'r+b'); w.seek(last * 2097152 + have); w.write(bytes(2097152 - have))
	END
	found footer-end-missing
	mended block-cut
	is_raw disk.vhd want.raw
}

@test "block-cut: within the bitmap" {
	disk
	last=$("$python" -c 'import struct
f = open("disk.vhd", "rb"); f.seek(1536); b = struct.unpack(">4I", f.read(16)); print(max(b), b.index(max(b)))')
	truncate -s $((${last% *} * 512 + 100)) disk.vhd
	mended block-cut
	lost_block "${last#* }"
	is_raw disk.vhd want.raw
}

@test "block-cut: the footer stands within the last block" {
	disk
	tail -c 512 disk.vhd >foot
	truncate -s -64K disk.vhd
	cat foot >>disk.vhd
	mended block-cut
}

@test "a file cut in half: every lost block is reported" {
	disk
	truncate -s 3M disk.vhd
	found bat-out-of-file
	json '([.files[0].faults[] | select(.lost != null)] | length) >= 2'
	vhd-check -q --repair disk.vhd || :
	sound disk.vhd
}

@test "block-unaligned" {
	disk --align=512
	found block-unaligned note
	alone ""
}

# --- space ------------------------------------------------------------------------------------------------

@test "space-leaked" {
	disk --gap=3M
	found space-leaked warning
	json '.files[0].leaked >= 3145728'
	disk --gap=64K
	found space-leaked note
}

@test "space-trailing: zeros before the footer are cut off" {
	disk
	tail -c 512 disk.vhd >foot
	truncate -s +5M disk.vhd
	cat foot >>disk.vhd
	dd if=/dev/zero of=disk.vhd bs=1 seek=$(($(size disk.vhd) - 512 - 5242880 - 512)) count=512 conv=notrunc status=none
	mended_whole space-trailing warning
	[ "$(size disk.vhd)" -lt 9000000 ]
}

@test "space-trailing: data in it is not cut off" {
	disk
	before=$(size disk.vhd)
	tail -c 512 disk.vhd >foot
	truncate -s +5M disk.vhd
	head -c 1000 /dev/urandom | dd of=disk.vhd bs=1 seek=$((before + 3145728)) conv=notrunc status=none
	cat foot >>disk.vhd
	found space-trailing warning
	vhd-check -q --repair disk.vhd
	is_raw disk.vhd want.raw
	[ "$(size disk.vhd)" -lt $((before + 4194304)) ]
	[ "$(size disk.vhd)" -ge $((before + 3145728 + 1000)) ]
}

# --- bitmaps ------------------------------------------------------------------------------------------------

@test "bitmap-clear-over-data of a dynamic disk" {
	disk --creator=qemu
	model poke disk.vhd bit.1.9=0 bit.1.10=0
	data=$(field disk.vhd data.1)
	put disk.vhd $((data + 9 * 512)) 01
	left_alone bitmap-clear-over-data warning
}

@test "bitmap-clear-over-data is not looked for in a child" {
	pair
	model poke disk.vhd bit.1.9=0
	put disk.vhd $(($(field disk.vhd data.1) + 9 * 512)) 01
	not_found bitmap-clear-over-data
}

@test "bitmap-beyond-disk" {
	disk --block=512K
	put disk.vhd $(($(field disk.vhd bat.0) * 512 + 128)) 80
	found bitmap-beyond-disk note
	alone ""
}

@test "--no-bitmaps does not look into the blocks" {
	disk
	model poke disk.vhd bit.1.9=0
	put disk.vhd $(($(field disk.vhd data.1) + 9 * 512)) 01
	run vhd-check --no-bitmaps disk.vhd
	[ "$output" = "disk.vhd: sound" ]
}

# --- XenServer ------------------------------------------------------------------------------------------------

tap() {
	model make disk.vhd --size=64M --fill=8:2M --raw=want.raw --creator=tap
	head=$((1536 + 512)) map=$((1536 + 1024))
}

@test "batmap-missing" {
	tap
	zero disk.vhd $head 8
	left_alone batmap-missing warning
}

@test "batmap-outside" {
	tap
	put disk.vhd $((head + 8)) 0000000800000000
	mended_whole batmap-outside
}

@test "batmap-outside, and its header cut in the middle: the map is made behind it" {
	model make disk.vhd --size=64M --raw=want.raw --creator=tap
	truncate -s $((1536 + 512 + 40)) disk.vhd
	mended_whole batmap-outside
}

@test "batmap-outside, and a block where the map could be: the map is made behind all else" {
	tap
	local b
	b=$(field disk.vhd used | head -n 1)
	# The block moves up to where the map is; each of its sectors is read before it is overwritten.
	dd if=disk.vhd of=disk.vhd bs=512 skip="$(field disk.vhd bat."$b")" seek=$((map / 512)) \
		count=4097 conv=notrunc status=none
	model poke disk.vhd bat."$b"=$((map / 512))
	put disk.vhd $((head + 8)) 0000000800000000
	mended_whole batmap-outside
}

@test "batmap-bad-checksum: the map is made anew from the bitmaps" {
	tap
	put disk.vhd $map 5a5a
	mended_whole batmap-bad-checksum
}

@test "batmap-false-full: of a block with a hole, and of one that is not there" {
	tap
	"$python" - <<-'END'
		import struct
		f = open('disk.vhd', 'r+b'); f.seek(1536 + 512)
		h = bytearray(f.read(512)); m = bytearray(f.read(512))
		m[0:4] = b'\xff' * 4
		h[24:28] = struct.pack('>I', ~sum(m) & 0xffffffff)
		f.seek(1536 + 512); f.write(h + m)
	END
	mended_whole batmap-false-full
	[ "$(model check disk.vhd)" = "" ]
}

@test "a block over the batmap: the map is what was destroyed" {
	tap
	cp disk.vhd good.vhd
	b=$(field disk.vhd used | head -n 1)
	model poke disk.vhd bat."$b"=$((map / 512))
	found bat-in-metadata
	cp good.vhd disk.vhd
	model poke disk.vhd bat."$b"=$((map / 512))
	put disk.vhd $map 5a5a5a
	found batmap-bad-checksum
}

@test "encrypted" {
	tap
	put disk.vhd $((head + 29)) 01
	left_alone encrypted warning
}

@test "bitmap-order" {
	tap
	model poke disk.vhd foot.creator_version=1
	left_alone bitmap-order warning
}

# --- locators and the parent ------------------------------------------------------------------------------------

@test "a sound chain" {
	pair
	run vhd-check --chain disk.vhd
	assert_status 0
	[ "$output" = "disk.vhd: sound" ]
}

@test "locator-code" {
	pair
	model poke disk.vhd loc.0.code=XyZ1
	found locator-code warning
}

@test "locator-twice" {
	pair
	model poke disk.vhd loc.0.code=W2ru
	mended_whole locator-twice warning
}

@test "locator-length" {
	pair
	model poke disk.vhd loc.1.length=70000
	mended_whole locator-length warning
	pair
	model poke disk.vhd loc.1.length=7
	mended_whole locator-length warning
}

@test "locator-outside" {
	pair
	model poke disk.vhd loc.1.offset=1T
	mended_whole locator-outside
	[ "$(field disk.vhd loc.0.text)" = '.\base.vhd' ]
}

@test "locator-space" {
	pair
	model poke disk.vhd loc.1.length=600 loc.1.space=512
	found locator-space warning
}

@test "locator-text" {
	pair
	put disk.vhd "$(field disk.vhd loc.1.offset)" 00dc00dc00dc
	mended_whole locator-text warning
}

@test "locator-overlap" {
	pair
	model poke disk.vhd loc.1.offset=1600
	mended_whole locator-overlap
}

@test "the link of a XenServer child keeps its MacX locator" {
	pair --locators=MacX,W2ku,W2ru
	model poke disk.vhd loc.1.length=7
	mended_whole locator-length warning
	[ "$(field disk.vhd loc.0.code loc.0.text | tail -n 1)" = file://./base.vhd ]
}

@test "locators that are rubbish make room for good ones" {
	pair
	put disk.vhd $((512 + 576)) "$(printf 'fe%.0s' $(seq 192))"
	mended_whole locator-length warning
	[ "$(field disk.vhd loc.0.text)" = '.\base.vhd' ]
}

@test "parent-unnamed" {
	pair
	model poke disk.vhd head.name= loc.0.code=hex:00000000 loc.1.code=hex:00000000
	found parent-unnamed
	mended_whole parent-unnamed
}

@test "parent-missing: a warning for the child alone, an error for the chain" {
	pair
	rm base.vhd
	left_alone parent-missing warning
	assert_status 0
	found parent-missing error disk.vhd --chain
	assert_status 65
}

@test "parent-missing: renamed, and found by its UUID" {
	pair
	mv base.vhd other.vhd
	mended_whole parent-missing warning
	[ "$(field disk.vhd loc.0.text)" = '.\other.vhd' ]
}

@test "parent-missing: two files with its UUID: nothing is guessed" {
	pair
	mv base.vhd other.vhd
	cp other.vhd another.vhd
	left_alone parent-missing warning
}

@test "parent-not-allowed names the option, which helps" {
	pair
	mkdir up sub
	mv base.vhd up
	mv disk.vhd sub
	model poke sub/disk.vhd loc.1.text='..\up\base.vhd'
	found parent-not-allowed warning sub/disk.vhd
	assert_output_has --parent-dir=
	vhd-check --parent-dir=up sub/disk.vhd
	vhd-check --parent-anywhere --chain sub/disk.vhd
	QSM_PARENT_PATH=up vhd-check --chain sub/disk.vhd
}

@test "parent-wrong-uuid" {
	pair
	model poke base.vhd foot.uid=hex:000102030405060708090a0b0c0d0e0f
	left_alone parent-wrong-uuid
	assert_status 65
	assert_output_has "0001"
}

@test "parent-damaged" {
	pair
	zero base.vhd 512 1024
	found parent-damaged
	found header-missing error disk.vhd --chain
}

@test "parent-wrong-size: the parent has grown" {
	pair
	model make big.vhd --size=12M --uuid="$(field base.vhd foot.uid)"
	mv big.vhd base.vhd
	left_alone parent-wrong-size
	assert_status 65
}

@test "parent-wrong-size: a child that was grown reads zeros behind its parent" {
	model make base.vhd --size=7M --fill=9:4K
	model make disk.vhd --parent=base.vhd
	model poke disk.vhd foot.size=8M
	found parent-wrong-size warning
}

@test "parent-loop: of two, and of one" {
	pair
	uid=$(field disk.vhd foot.uid)
	model make base.vhd --size=8M --uuid="$(field base.vhd foot.uid)" --parent-uuid="$uid" --text='.\disk.vhd'
	found parent-loop
	found parent-loop error disk.vhd --chain
	model make disk.vhd --size=8M --uuid="$uid" --parent-uuid="$uid" --text='.\disk.vhd'
	found parent-loop
}

@test "parent-too-deep" {
	vhd-create --size=1M 0.vhd
	for i in $(seq 1 256); do
		model make $i.vhd --parent=$((i - 1)).vhd --size=1M
	done
	found parent-too-deep error 256.vhd
	vhd-check 255.vhd
}

@test "parent-raw" {
	truncate -s 8M base.raw
	model make disk.vhd --raw-parent --parent=base.raw --size=8M --text='.\base.raw'
	found parent-raw note
	alone ""
}

@test "parent-timestamp" {
	pair
	model poke disk.vhd head.ptime=1000
	found parent-timestamp note
	alone ""
}

@test "--chain checks every parent and names the file" {
	pair
	model poke base.vhd bat.1=9999999
	run vhd-check disk.vhd
	assert_status 0
	found bat-out-of-file error disk.vhd --chain
	json '.files[0].layers == 2 and (.files[0].faults[] | select(.severity == "error") | .file | endswith("/base.vhd"))'
}

@test "--chain --repair mends the file itself, and says what its parents need" {
	pair
	model poke base.vhd bat.1=9999999
	zero disk.vhd 0 512
	cp base.vhd same
	run vhd-check --chain --repair disk.vhd
	assert_status 65
	[[ $output == *footer-front-missing*mended*base.vhd*bat-out-of-file*"--repair mends it"* ]]
	cmp base.vhd same
	vhd-check disk.vhd
}

# --- leftovers --------------------------------------------------------------------------------------------------

@test "merge-unfinished: an error for the parent, a warning through the child" {
	pair
	hex=$(field disk.vhd foot.uid)
	printf 'qsm-merge 1\nchild-uuid %s\nleaf-uuid %s\nstate merging\nleaf %s' "$hex" "$hex" "$PWD/disk.vhd" >base.vhd.merging
	found merge-unfinished error base.vhd
	found merge-unfinished warning disk.vhd --chain
	assert_status 0
}

@test "merge-marker-damaged" {
	disk
	echo nonsense >disk.vhd.merging
	found merge-marker-damaged
}

@test "receive-unfinished: a warning, and no repair" {
	disk
	hex=$(field disk.vhd foot.uid)
	printf 'qsm-merge 1\nchild-uuid %s\nleaf-uuid %s\nstate receiving\nleaf %s' "$hex" "$hex" "$PWD/x" \
		>disk.vhd.merging
	found receive-unfinished warning
	assert_status 0
	refused 75 vhd-check --repair disk.vhd
	refused 75 vhd-check --undo disk.vhd
}

@test "undo-left" {
	disk
	zero disk.vhd 0 512
	vhd-check -q --repair disk.vhd
	found undo-left note
	alone ""
}

# cut_short: a change of disk.vhd that died, with its FILE.rollback
cut_short() {
	cp disk.vhd whole
	zero disk.vhd 0 512
	strace -f -o /dev/null -e inject=fdatasync:signal=KILL:when=1 vhd-check --repair disk.vhd || :
	[ -e disk.vhd.rollback ]
}

@test "rollback-pending: a change that was cut short" {
	need strace
	disk
	cut_short
	cp disk.vhd half
	found rollback-pending
	cmp disk.vhd half
	run vhd-check --repair disk.vhd
	assert_status 0
	assert_output_has rollback-pending
	is_raw disk.vhd want.raw
	[ ! -e disk.vhd.rollback ]
}

@test "any other tool puts back what was cut short before it opens the disk" {
	need strace
	disk
	zero disk.vhd 0 512
	cp disk.vhd damaged
	strace -f -o /dev/null -e inject=fdatasync:signal=KILL:when=1 vhd-check --repair disk.vhd || :
	[ -e disk.vhd.rollback ]
	run vhd-info --json disk.vhd
	json '.files[0].warning | test("undone")'
	cmp disk.vhd damaged
	[ ! -e disk.vhd.rollback ]
}

@test "what was cut short is not put back for a look without lock" {
	need strace
	disk
	zero disk.vhd 0 512
	strace -f -o /dev/null -e inject=fdatasync:signal=KILL:when=1 vhd-check --repair disk.vhd || :
	unchanged disk.vhd disk.vhd.rollback -- vhd-info --unlocked disk.vhd
	assert_status 0
}

@test "what somebody else has put beside a disk is not written into it" {
	disk
	head -c 4096 /dev/urandom >disk.vhd.rollback
	unchanged disk.vhd disk.vhd.rollback -- vhd-info disk.vhd
	assert_status 65
	[[ $stderr == *disk.vhd.rollback* ]]
	unchanged disk.vhd disk.vhd.rollback -- vhd-check --repair disk.vhd
	assert_status 65
	rm disk.vhd.rollback
	ln -s /etc/passwd disk.vhd.rollback
	unchanged disk.vhd -- vhd-sum disk.vhd
	assert_status 65
}

# --- the tool ---------------------------------------------------------------------------------------------------

@test "a check writes nothing" {
	pair
	model poke disk.vhd bat.1=9999999
	unchanged disk.vhd base.vhd -- vhd-check --chain disk.vhd
	assert_status 65
	unchanged disk.vhd base.vhd -- vhd-check --repair --dry-run disk.vhd
	assert_status 65
	assert_output_has "--repair mends it"
}

@test "a repair of a sound disk changes nothing" {
	disk
	unchanged disk.vhd -- vhd-check --repair disk.vhd
	assert_status 0
}

@test "many faults at once, mended and taken back" {
	tap
	put disk.vhd 70 ff
	put disk.vhd $((512 + 36)) 00000000
	put disk.vhd $map 77
	b=$(field disk.vhd used | head -n 1)
	c=$(field disk.vhd used | tail -n 1)
	put disk.vhd $((1536 + 4 * b)) 7fffffff
	put disk.vhd $((1536 + 4 * c)) 00000001
	cp disk.vhd damaged
	run vhd-check disk.vhd
	assert_status 65
	run vhd-check --repair disk.vhd
	assert_status 0
	sound disk.vhd
	vhd-check -q --undo disk.vhd
	cmp disk.vhd damaged
}

@test "two repairs are taken back one after the other" {
	disk
	cp disk.vhd 0
	zero disk.vhd 0 512
	cp disk.vhd 1
	vhd-check -q --repair disk.vhd
	model poke disk.vhd foot.features=0
	cp disk.vhd 2
	vhd-check -q --repair disk.vhd
	[ -e disk.vhd.undo.2 ]
	vhd-check -q --undo disk.vhd
	cmp disk.vhd 2
	run --separate-stderr vhd-check --undo disk.vhd
	assert_status 65
	vhd-check -q --undo --force disk.vhd
	cmp disk.vhd 1
	refused 66 vhd-check --undo disk.vhd
}

@test "--undo is refused when the guest has written since, unless forced" {
	disk
	put disk.vhd 64 00000000
	vhd-check -q --repair disk.vhd
	vhd-create -q --size=1M x.vhd
	model poke disk.vhd foot.timestamp=77
	unchanged disk.vhd disk.vhd.undo -- vhd-check --undo disk.vhd
	assert_status 65
	[[ $stderr == *--force* ]]
	vhd-check --undo --force disk.vhd
}

@test "--undo writes to no other file than the one that was repaired" {
	disk
	zero disk.vhd 0 512
	vhd-check -q --repair disk.vhd
	cp disk.vhd other.vhd
	cp disk.vhd.undo other.vhd.undo
	unchanged other.vhd other.vhd.undo -- vhd-check --undo other.vhd
	assert_status 65
	ln -s disk.vhd.undo link.vhd.undo
	cp disk.vhd link.vhd
	unchanged link.vhd disk.vhd.undo -- vhd-check --undo link.vhd
	assert_status 65
}

@test "--undo of a file that was never repaired: 66" {
	disk
	refused 66 vhd-check --undo disk.vhd
}

@test "killed at every system call, a repair leaves the old disk, and a re-run finishes" {
	need strace
	model make good.vhd --size=8M --fill=9:4K --creator=tap
	zero good.vhd 0 512
	put good.vhd $((1536 + 1024)) 77
	e=$(field good.vhd used | head -n 1)
	put good.vhd $((1536 + 4 * e)) 7fffffff
	cp good.vhd want.vhd
	vhd-check -q --repair want.vhd || :
	n=0
	for call in pwrite64 fsync fdatasync rename,renameat2 ftruncate unlink fchmod fchown; do
		for i in $(seq 1 40); do
			rm -f disk.vhd*
			cp good.vhd disk.vhd
			strace -f -qq -o trace -e trace="$call" -e inject="$call":signal=KILL:when="$i" \
				vhd-check -q --repair disk.vhd >/dev/null 2>&1 && break
			grep -q killed trace || break
			n=$((n + 1))
			vhd-check -q --repair disk.vhd >/dev/null || :
			cmp disk.vhd want.vhd || fail "$call $i"
			vhd-check -q --undo disk.vhd
			cmp disk.vhd good.vhd || fail "--undo after $call $i"
		done
	done
	echo "$n"
	[ "$n" -ge 12 ]
}

@test "no space for the old bytes: 73, nothing is changed" {
	disk
	small_fs 9M 'cd small
		'"$python $top/tests/model/vhdmodel.py"' make disk.vhd --size=2M --fill=9:4K
		dd if=/dev/zero of=disk.vhd bs=512 count=1 conv=notrunc status=none
		dd if=/dev/urandom of=fill bs=1M status=none || :
		sha256sum disk.vhd >'"$BATS_TEST_TMPDIR/sum"'
		vhd-check --repair disk.vhd; s=$?
		sha256sum -c '"$BATS_TEST_TMPDIR/sum"' && [ $s -eq 73 ] && [ "$(echo disk.vhd*)" = disk.vhd ]'
}

@test "a disk that is in use: 75, and --unlocked looks at it all the same" {
	disk
	hold disk.vhd write
	run --separate-stderr vhd-check disk.vhd
	assert_status 75
	[[ $stderr == *--unlocked* ]]
	run vhd-check --unlocked disk.vhd
	assert_status 0
	assert_output_has unlocked
	refused 75 vhd-check --repair disk.vhd
	release
}

@test "a disk that is read: it is checked, not repaired" {
	disk
	hold disk.vhd read
	vhd-check disk.vhd
	refused 75 vhd-check --repair disk.vhd
	release
}

@test "several files: all are checked, the status is the first that is not 0" {
	disk
	cp disk.vhd bad.vhd
	zero bad.vhd 0 512
	run --separate-stderr vhd-check bad.vhd gone.vhd disk.vhd
	assert_status 65
	assert_output_has "disk.vhd: sound"
	[[ $stderr == *gone.vhd* ]]
	run vhd-check gone.vhd bad.vhd
	assert_status 66
}

@test "JSON" {
	pair
	model poke disk.vhd bat.2=9999999
	run --separate-stderr vhd-check --json disk.vhd base.vhd
	assert_status 65
	json '.version == 1 and (.files | length) == 2'
	json '.files[0] | .file == "disk.vhd" and .errors == 1 and .sound == false and .repaired == false'
	json '.files[0].faults[0] | .id == "bat-out-of-file" and .offset == 1544 and .block == 2 and .blocks == 1 and .repairable'
	json '.files[1] | .sound and .errors == 0 and .blocks == 4 and .used == 4'
	run --separate-stderr vhd-check --repair --json disk.vhd
	assert_status 0
	json '.files[0] | .repaired and .sound and .after.errors == 0 and (.undo | endswith("disk.vhd.undo"))'
	run --separate-stderr vhd-check --undo --json disk.vhd
	json '.files[0].undone'
}

@test "--quiet: only errors" {
	disk --creator=vbox --align=512
	run --separate-stderr vhd-check -q disk.vhd
	assert_status 0
	[ -z "$output$stderr" ]
	zero disk.vhd 0 512
	run --separate-stderr vhd-check -q disk.vhd
	assert_status 65
	[[ $output == *footer-front-missing* ]]
}

@test "options that do not go together" {
	disk
	refused 64 vhd-check --repair --undo disk.vhd
	refused 64 vhd-check --dry-run disk.vhd
	refused 64 vhd-check --force disk.vhd
	refused 64 vhd-check --repair --no-bitmaps disk.vhd
	refused 64 vhd-check --repair --unlocked disk.vhd
	refused 64 vhd-check
}

@test "a block device, a FIFO, a folder" {
	mkfifo f
	refused 65 vhd-check f
	mkdir d
	refused 65 vhd-check d
}

@test "memory and time are bounded for a file that claims a huge table" {
	model make disk.vhd --size=8M --block=4K
	"$python" - <<-'END'
		import struct
		f = open('disk.vhd', 'r+b')
		def seal(b, at):
		    b[at:at + 4] = bytes(4)
		    b[at:at + 4] = struct.pack('>I', ~sum(b) & 0xffffffff)
		f.seek(0); foot = bytearray(f.read(512)); head = bytearray(f.read(1024))
		foot[48:56] = struct.pack('>Q', 2040 << 30); seal(foot, 64)
		head[28:32] = struct.pack('>I', 0xffffffff); seal(head, 36)
		f.seek(0); f.write(foot + head)
		f.truncate(1536 + (4 << 32) + (1 << 30)); f.seek(0, 2); f.write(foot)
	END
	MEMORY=100000 run limited vhd-check --json disk.vhd
	assert_status 65
	json '[.files[0].faults[] | select(.blocks > 500000000)] | length == 1'
}

@test "weak point 6: repair mends BAT, header, batmap and parent link, not only footers" {
	tap
	put disk.vhd $map 77
	mended_whole batmap-bad-checksum
	put disk.vhd $((512 + 36)) 00000000
	rm -f disk.vhd.undo*
	mended_whole header-bad-checksum
	model poke disk.vhd bat.0=9999999
	mended bat-out-of-file
	rm -f ./*
	pair
	mv base.vhd moved.vhd
	mended_whole parent-missing warning
}

@test "weak point 7: good Hyper-V children are accepted; wraps, a cut block, loops and a larger child are found" {
	corpus go-vhd/win8.vhd go-vhd/win8-child.vhd
	vhd-check --chain win8-child.vhd
	disk
	cp disk.vhd good.vhd
	model poke disk.vhd bat.1=4294967294
	found bat-wraps
	cp good.vhd disk.vhd
	truncate -s -100K disk.vhd
	found block-cut
	model make disk.vhd --size=8M --uuid=000102030405060708090a0b0c0d0e0f \
		--parent-uuid=000102030405060708090a0b0c0d0e0f --text='.\disk.vhd'
	limited vhd-check disk.vhd && fail "a self-parent loop is accepted"
	found parent-loop
	model make base.vhd --size=4M
	model make disk.vhd --size=8M --parent=base.vhd
	found parent-wrong-size
	assert_status 65
}

@test "absorbed, parent-written, absorbed-damaged: a child that was merged and is still there" {
	model make base.vhd --size=4M --fill=2:4K
	model make disk.vhd --parent=base.vhd --fill=2:4K --seed=2
	vhd-merge -q disk.vhd
	found absorbed note
	touch base.vhd
	found parent-written warning
	echo mine >base.vhd.absorbed
	found absorbed-damaged warning
}

@test "every identifier stands in the page and is tested here" {
	for id in $(grep -oE '"[a-z-]+", IMG_' "$top/lib/vhd_faults.c" | cut -d'"' -f2); do
		grep -q "^\.It Cm $id Pq" "$top/man/vhd-check.1" || fail "$id is not in the page"
		grep -qE "(found|mended|mended_whole|left_alone) $id" "$BATS_TEST_FILENAME" || fail "$id is not tested"
	done
}
