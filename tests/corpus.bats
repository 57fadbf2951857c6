# SPDX-License-Identifier: BSD-2-Clause
# Real files made by other programs: each reads as 7-Zip (or, where that refuses, the model) says.
load helper
load disks

setup() {
	workdir
}

vhds="dfvfs/ext2.vhd dfvfs/fat-parent.vhd dfvfs/fat-differential.vhd dfvfs/ntfs-parent.vhd
	dfvfs/ntfs-differential.vhd dfvfs/ntfs-dynamic.vhd dfvfs/ntfs-fixed.vhd
	go-vhd/qemu.vhd go-vhd/vbox.vhd go-vhd/win8.vhd go-vhd/win8-child.vhd go-vhd/win8.1-1GB.vhd
	go-vhd/xapi.vhd vhd-forensic/minimal.vhd vhd-forensic/original-size-mismatch.vhd"
# Edited by hand: their checksums are wrong.
edited="dfvfs/image.vhd dfvfs/image-differential.vhd"

zip_sha() {
	7zz x -tVHD -so "$1" 2>/dev/null | sha256sum | cut -d' ' -f1
}

@test "every VHD reads as 7-Zip says" {
	need 7zz
	# shellcheck disable=SC2086
	corpus $vhds
	for f in $vhds; do
		f=${f##*/}
		[ "$f" != win8.1-1GB.vhd ] || continue # 1 GiB of zeros
		[ "$(our_sha "$f")" = "$(zip_sha "$f")" ] || fail "$f"
	done
}

@test "every VHD reads as the model says" {
	# shellcheck disable=SC2086
	corpus $vhds $edited
	for f in $vhds $edited; do
		f=${f##*/}
		vhd-convert -q --force --type=raw "$f" out.raw || fail "$f"
		model cmp "$f" out.raw || fail "$f"
	done
}

@test "the 127 GiB of Virtual PC: the size is the field's, not the geometry's" {
	corpus qemu/virtualpc-dynamic.vhd
	run --separate-stderr vhd-info --json virtualpc-dynamic.vhd
	json '.files[0].size == 136365211648'
	vhd-convert --type=raw virtualpc-dynamic.vhd out.raw
	[ "$(stat -c %s out.raw)" -eq 136365211648 ]
	model cmp virtualpc-dynamic.vhd out.raw
}

@test "sizes, types and creators are those of the list" {
	m=${VHD_CORPUS:-$top/../shared/corpus}/MANIFEST.md
	[ -f "$m" ] || skip "needs the list of samples"
	# shellcheck disable=SC2086
	corpus $vhds $edited qemu/virtualpc-dynamic.vhd
	for f in $vhds $edited qemu/virtualpc-dynamic.vhd; do
		line=$(grep -F "|$f|" "$m")
		IFS='|' read -r _ _ bytes _ kind creator size _ <<<"$line"
		run --separate-stderr vhd-info --json "${f##*/}"
		assert_status 0
		json ".files[0] | .file_size == $bytes and .size == $size" || fail "$f: sizes"
		json ".files[0].type == \"${kind#VHD }\"" || fail "$f: type"
		json ".files[0].creator[0:3] == \"${creator:1:3}\"" || fail "$f: creator"
	done
}

@test "vhd-info writes to none of them" {
	# shellcheck disable=SC2086
	corpus $vhds $edited
	before=$(sha ./*.vhd; stat -c %Y ./*.vhd)
	for f in *.vhd; do
		vhd-info --chain --map "$f" >out || fail "$f"
		[ -s out ]
	done
	[ "$(sha ./*.vhd; stat -c %Y ./*.vhd)" = "$before" ]
}

@test "wrong checksums of an edited file are a warning to a reader" {
	# shellcheck disable=SC2086
	corpus $edited
	for f in image.vhd image-differential.vhd; do
		run --separate-stderr vhd-info --json $f
		assert_status 0
		json '.files[0].warning | test("checksum")'
		run --separate-stderr vhd-convert --type=raw $f out.$f
		assert_status 0
		[[ $stderr == *checksum* ]]
	done
}

@test "and an error to a writer" {
	# shellcheck disable=SC2086
	corpus $edited
	unchanged image.vhd image-differential.vhd -- vhd-merge image-differential.vhd
	assert_status 65
}

@test "Windows 10 children merge into their parents" {
	need 7zz
	for n in fat ntfs; do
		corpus dfvfs/$n-parent.vhd dfvfs/$n-differential.vhd
		want=$(zip_sha $n-differential.vhd)
		vhd-merge --delete $n-differential.vhd
		[ "$(our_sha $n-parent.vhd)" = "$want" ] || fail "$n"
		[ "$(zip_sha $n-parent.vhd)" = "$want" ] || fail "$n by 7-Zip"
		sound $n-parent.vhd
	done
	corpus go-vhd/win8.vhd go-vhd/win8-child.vhd
	want=$(zip_sha win8-child.vhd)
	vhd-merge --delete win8-child.vhd
	[ "$(our_sha win8.vhd)" = "$want" ]
	[ "$(zip_sha win8.vhd)" = "$want" ]
	sound win8.vhd
}

@test "a Windows parent grows as Windows makes it grow: aligned, and zeros where nothing was written" {
	corpus go-vhd/win8.vhd
	child=$(vhd-snap win8.vhd)
	truncate -s 41943040 want.raw
	model write "$child" --fill=5:512 --zeros=0 --raw=want.raw
	vhd-merge --delete "$child"
	is_raw win8.vhd want.raw
	sound win8.vhd
	# shellcheck disable=SC2046
	for e in $(field win8.vhd $(seq -f bat.%g 0 19)); do
		[ "$e" -eq 4294967295 ] || [ $(((e + 1) % 8)) -eq 0 ] || fail "a block at sector $e is not aligned"
	done
}

@test "a checkpoint of every disk reads as the disk" {
	# shellcheck disable=SC2086
	corpus $vhds
	for f in $vhds; do
		f=${f##*/}
		before=$(sha "$f")
		vhd-snap --output=child.avhd "$f" >/dev/null || fail "$f"
		sound --strict child.avhd || fail "$f"
		[ "$(vhd-sum child.avhd | cut -d' ' -f1)" = "$(vhd-sum "$f" | cut -d' ' -f1)" ] || fail "$f"
		[ "$(sha "$f")" = "$before" ] || fail "$f was changed"
		rm child.avhd
	done
}

@test "a checkpoint of every disk, written to and merged" {
	# shellcheck disable=SC2086
	corpus $vhds
	for f in $vhds; do
		f=${f##*/}
		[ "$(stat -c %s "$f")" -lt 9000000 ]
		rm -f want.raw
		model cat "$f" --out=want.raw
		vhd-snap --output=child.avhd "$f" >/dev/null
		model write child.avhd --fill=20:4K --raw=want.raw
		# Its other children would not show any more what they show.
		mkdir aside
		vhd-info -q --json ./*.vhd | jq -r --arg f "./$f" '(.files[] | select(.file == $f).uuid) as $u |
			.files[] | select(.parent.uuid == $u).file' | xargs -r mv -t aside
		vhd-merge --delete child.avhd >/dev/null || fail "$f"
		find aside -type f -exec mv {} . \;
		rmdir aside
		model cmp "$f" want.raw || fail "$f"
		[ "$(vhd-sum "$f" | cut -d' ' -f1)" = "$(vhd-sum want.raw | cut -d' ' -f1)" ] || fail "$f"
		sound "$f"
	done
}

@test "VHDX is refused by name" {
	corpus dfvfs/ext2.vhdx dfvfs/fat-differential.vhdx qemu/iotest-dirtylog-10G-4M.vhdx
	for f in *.vhdx; do
		refused 65 vhd-convert --type=raw "$f" out.raw
		[[ $stderr == *VHDX* ]] || fail "$f"
		refused 65 vhd-sum "$f"
		refused 65 vhd-info "$f"
	done
}

@test "single structures are refused" {
	corpus libvhdi-structs/file_footer.1 libvhdi-structs/dynamic_disk_header.1
	for f in file_footer.1 dynamic_disk_header.1; do
		refused 65 vhd-convert --type=raw $f out.raw
	done
}
