# SPDX-License-Identifier: BSD-2-Clause
# With other programs, both ways: qemu-img, 7-Zip, and the model that shares no code with us.
load helper
load disks

setup() {
	workdir
}

zip_sha() {
	7zz x -tVHD -so "$1" 2>/dev/null | sha256sum | cut -d' ' -f1
}

# mkchain CREATOR PATTERN: parent.vhd, child.avhd and expected.sha256 by the measuring tool
mkchain() {
	local m=${VHD_MKCHAIN:-$top/../shared/tools/mkchain.py}
	[ -f "$m" ] || skip "needs mkchain.py (set VHD_MKCHAIN)"
	"$python" "$m" . 32M "$2" 42 --creator "$1" --parent 16M --dirty 2M >/dev/null
}

@test "qemu-img sees our empty disks at their exact size" {
	need qemu-img
	for t in dynamic fixed; do
		for s in 512 1M 5243392 40M 127G 200G; do
			[ $t-$s != fixed-512 ] || continue
			rm -f disk.vhd
			vhd-create --type=$t --size=$s disk.vhd
			run qemu-img info -f vpc --output=json disk.vhd
			assert_status 0
			[ "$(jq '."virtual-size"' <<<"$output")" = "$(field disk.vhd foot.size)" ] || fail "$t $s"
		done
	done
}

@test "qemu-img reads what we convert" {
	need qemu-img
	model make src.vhd --size=9M --fill=50:4K --raw=want.raw
	for t in dynamic fixed; do
		vhd-convert --type=$t src.vhd $t.vhd
		run qemu-img compare -f vpc -F raw $t.vhd want.raw
		assert_status 0
	done
}

@test "we read what qemu-img made" {
	need qemu-img
	model make src.vhd --size=9M --fill=50:4K --raw=want.raw
	for o in subformat=dynamic subformat=fixed subformat=dynamic,force_size subformat=fixed,force_size; do
		rm -f q.vhd q.raw
		qemu-img convert -f raw -O vpc -o $o want.raw q.vhd
		qemu-img convert -f vpc -O raw q.vhd q.raw
		[ "$(our_sha q.vhd)" = "$(sha q.raw)" ] || fail "$o"
		[ "$(vhd-sum q.vhd | cut -d' ' -f1)" = "$(vhd-sum q.raw | cut -d' ' -f1)" ]
	done
}

@test "a child of ours on a disk of qemu-img's, merged, is still one that qemu-img reads" {
	need qemu-img qemu-io
	truncate -s 8M want.raw
	qemu-img create -q -f vpc -o subformat=dynamic,force_size q.vhd 8M
	qemu-io -f vpc -c 'write -P 7 100k 500k' q.vhd >/dev/null
	qemu-img convert -f vpc -O raw q.vhd want.raw
	child=$(vhd-snap q.vhd)
	model write "$child" --fill=50:4K --raw=want.raw
	vhd-merge --delete "$child"
	sound q.vhd
	run qemu-img compare -f vpc -F raw q.vhd want.raw
	assert_status 0
	qemu-io -f vpc -c 'write -P 9 4M 64k' q.vhd >/dev/null
	qemu-io -f raw -c 'write -P 9 4M 64k' want.raw >/dev/null
	[ "$(our_sha q.vhd)" = "$(sha want.raw)" ]
}

@test "qemu-io writes into a disk that we made, and we read it" {
	need qemu-io
	vhd-create --size=16M disk.vhd
	truncate -s 16M want.raw
	for f in "vpc disk.vhd" "raw want.raw"; do
		# shellcheck disable=SC2086
		set -- $f
		qemu-io -f "$1" -c 'write -P 1 0 4k' -c 'write -P 2 5M 3M' -c 'write -P 3 16776704 512' "$2" >/dev/null
	done
	[ "$(our_sha disk.vhd)" = "$(sha want.raw)" ]
	sound disk.vhd
}

@test "a disk that QEMU has open for writing is locked for us" {
	need qemu-io
	vhd-create --size=1M disk.vhd
	qemu_opens -f vpc disk.vhd
	refused 75 vhd-sum disk.vhd
	refused 75 vhd-create --force --size=1M disk.vhd
	refused 75 vhd-snap disk.vhd
	exec 7>&-
	wait
	vhd-sum disk.vhd
}

@test "a disk that QEMU has open for reading can be read, and not merged into" {
	need qemu-io
	model make base.vhd --size=1M
	model make leaf.avhd --parent=base.vhd --fill=3:4K
	qemu_opens -r -f vpc base.vhd
	vhd-sum base.vhd
	unchanged base.vhd leaf.avhd -- vhd-merge leaf.avhd
	exec 7>&-
	wait
	assert_status 75
}

@test "7-Zip reads our disks" {
	need 7zz
	model make src.vhd --size=9M --fill=50:4K --raw=want.raw
	for t in dynamic fixed; do
		vhd-convert --type=$t src.vhd $t.vhd
		[ "$(zip_sha $t.vhd)" = "$(sha want.raw)" ] || fail "$t"
	done
}

@test "7-Zip reads chains of our checkpoints" {
	need 7zz
	vhd-create --size=8M --block-size=512K l0.vhd
	model write l0.vhd --fill=20:4K --raw=want.raw
	for i in 1 2 3 4; do
		vhd-snap --output=l$i.avhd l$((i - 1)).*vhd
		model write l$i.avhd --fill=20:512 --raw=want.raw --seed=$i
		[ "$(zip_sha l$i.avhd)" = "$(sha want.raw)" ] || fail "depth $i"
		is_raw l$i.avhd want.raw
	done
	for i in 4 3 2 1; do
		vhd-merge --delete l$i.avhd
		f=$(echo l$((i - 1)).*vhd)
		[ "$(zip_sha "$f")" = "$(sha want.raw)" ] || fail "merged to $f"
		is_raw "$f" want.raw
	done
}

@test "7-Zip and we see the same in chains of every maker" {
	need 7zz
	for c in win win7 vpc tap vbox d2v; do
		rm -f base.vhd leaf.avhd want.raw
		model make base.vhd --size=4M --creator=$c --fill=20:4K --raw=want.raw --align=512
		model make leaf.avhd --parent=base.vhd --creator=$c --fill=60:512 --raw=want.raw --seed=3
		[ "$(zip_sha leaf.avhd)" = "$(sha want.raw)" ] || fail "7-Zip: $c"
		is_raw leaf.avhd want.raw
	done
}

@test "chains of the measuring tool: Windows" {
	for p in full rand4k rand512; do
		mkchain win $p
		[ "$(our_sha child.avhd)" = "$(cat expected.sha256)" ] || fail "$p"
		vhd-merge --delete child.avhd
		[ "$(our_sha parent.vhd)" = "$(cat expected.sha256)" ] || fail "$p merged"
		[ "$(model sha parent.vhd)" = "$(cat expected.sha256)" ] || fail "$p merged, by the model"
		sound --strict parent.vhd
	done
}

@test "chains of the measuring tool: XenServer" {
	for p in full rand4k rand512; do
		mkchain tap $p
		[ "$(our_sha child.avhd)" = "$(cat expected.sha256)" ] || fail "$p"
		vhd-merge --delete child.avhd
		[ "$(our_sha parent.vhd)" = "$(cat expected.sha256)" ] || fail "$p merged"
		[ "$(model sha parent.vhd)" = "$(cat expected.sha256)" ] || fail "$p merged, by the model"
		sound parent.vhd
	done
}

@test "random work on chains, compared after every step" {
	for i in 1 2 3 4 5; do
		mkdir r$i
		run env -C r$i PYTHONDONTWRITEBYTECODE=1 "$python" "$top/tests/model/randomchain.py" $((chance * 1000 + i)) 30
		assert_status 0
	done
}

@test "random work on chains: the same every time" {
	for i in 1 2 3 7; do
		mkdir r$i
		run env -C r$i PYTHONDONTWRITEBYTECODE=1 "$python" "$top/tests/model/randomchain.py" $i 25
		assert_status 0
	done
}
