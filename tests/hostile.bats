# SPDX-License-Identifier: BSD-2-Clause
# Files that want to do harm: refused with the right status, at once, within a bounded address
# space, and without touching a file that nobody named. And the incumbent's weak points, by number.
load helper
load disks

setup() {
	workdir
	model make base.vhd --size=8M --fill=20:4K --raw=leaf.raw
	model make leaf.avhd --parent=base.vhd --fill=40:512 --raw=leaf.raw --seed=2 --block=64K
	[ "$(field leaf.avhd blocks)" -gt 20 ]
	vhd-sum leaf.avhd >../sums
}

# Where a fault may be tolerated, what is read must be right.
right_or_refused() {
	case $status in
	0) vhd-sum --check ../sums | grep -q OK ;;
	65) [ -n "$stderr" ] ;;
	*) fail "neither read nor refused" ;;
	esac
}

# Every tool that opens leaf.avhd refuses it with STATUS; no file is changed or made.
all_refuse() {
	local want=$1 before after
	before=$(sha base.vhd leaf.avhd; ls -A)
	refused "$want" vhd-sum leaf.avhd
	refused "$want" vhd-convert --type=raw leaf.avhd out.raw
	refused "$want" vhd-convert --type=dynamic leaf.avhd out.vhd
	refused "$want" vhd-snap --output=out.avhd leaf.avhd
	refused "$want" vhd-merge leaf.avhd
	refused "$want" vhd-merge --dry-run leaf.avhd
	refused "$want" vhd-info --chain leaf.avhd
	after=$(sha base.vhd leaf.avhd; ls -A)
	[ "$before" = "$after" ] || fail "something was changed: $before $after"
}

# used_blocks FILE: the numbers of those that are allocated
used_blocks() {
	field "$1" used
}

# damage FILE CHANGE…: on a fresh copy of FILE, refused by all with 65
damage() {
	local f=$1
	shift
	cp "$f" whole
	model poke "$f" "$@"
	echo "# $f $*"
	mv whole ../whole
	all_refuse 65
	mv ../whole "$f"
}

@test "block size: 0, odd, tiny, huge" {
	for b in 0 1 511 3000 65537 196608 256 536870912 2147483648 4294967295; do
		damage leaf.avhd head.block=$b
	done
}

@test "block size of the parent" {
	for b in 0 3000 4294967295; do
		damage base.vhd head.block=$b
	done
}

@test "more table entries than the file can hold" {
	damage leaf.avhd head.entries=0
	damage leaf.avhd head.entries=127
	damage leaf.avhd head.entries=4294967295
	damage leaf.avhd head.entries=1073741824
}

@test "the table outside the file, or over the header" {
	for t in 0 512 1024 1537 0x7fffffffffffffff 0xfffffffffffffe00 0xffffffffffffffff 0x100000000000 100000000; do
		damage leaf.avhd head.table_offset=$t
	done
}

@test "the header outside the file, or over the footer" {
	for t in 0 256 1 0x7ffffffffffffe00 0xfffffffffffffe00 0xfffffffffffffc01 100000000; do
		damage leaf.avhd foot.data_offset=$t
	done
}

@test "the disk is larger than its table" {
	damage leaf.avhd foot.size=16M
	damage leaf.avhd foot.size=2040G
	damage leaf.avhd foot.size=0xfffffffffffffe00
	damage leaf.avhd foot.size=0x8000000000000000
}

@test "an empty disk is not merged, and crashes nobody" {
	model poke leaf.avhd foot.size=0
	unchanged base.vhd leaf.avhd -- vhd-merge leaf.avhd
	assert_status 65
	for c in vhd-sum "vhd-info --chain --map"; do
		# shellcheck disable=SC2086
		run --separate-stderr limited $c leaf.avhd
		[ "$status" -eq 0 ] || [ "$status" -eq 65 ] || fail "$c"
	done
}

@test "unknown types and versions" {
	for t in 0 1 5 6 7 4294967295; do
		damage leaf.avhd foot.type=$t
	done
	damage leaf.avhd foot.version=0x00020000
	damage leaf.avhd foot.version=0
	damage leaf.avhd head.version=0x00020000
	damage leaf.avhd head.cookie=xxsparse
}

@test "a poisoned file: a resize is under way" {
	damage leaf.avhd foot.cookie=v_poison
}

@test "table entries that wrap 32 bits, lie outside, or in the header" {
	b=$(used_blocks leaf.avhd | head -n 1)
	end=$(($(stat -c %s leaf.avhd) / 512))
	for e in 0 1 2 3 4294967294 4294967168 2147483648 8388608 $end $((end - 1)) $((end - 100)); do
		damage leaf.avhd bat.$b=$e
	done
}

@test "table entries that overlap" {
	# shellcheck disable=SC2046
	set -- $(used_blocks leaf.avhd | head -n 2)
	first=$(field leaf.avhd "bat.$1")
	for d in 0 1 100 -1; do
		cp leaf.avhd ../whole
		model poke leaf.avhd "bat.$2=$((first + d))"
		unchanged base.vhd leaf.avhd -- vhd-merge leaf.avhd
		assert_status 65
		mv ../whole leaf.avhd
	done
}

@test "table entries of a parent that overlap are refused before a merge" {
	[ "$(field base.vhd blocks)" -ge 2 ]
	model poke base.vhd bat.1="$(field base.vhd bat.0)"
	unchanged base.vhd leaf.avhd -- vhd-merge leaf.avhd
	assert_status 65
}

@test "a table entry over a locator" {
	l=$(($(field leaf.avhd loc.0.offset) / 512))
	unchanged base.vhd leaf.avhd -- true
	model poke leaf.avhd bat.0=$l
	unchanged base.vhd leaf.avhd -- vhd-merge leaf.avhd
	assert_status 65
}

@test "locators with impossible lengths and places are not used" {
	# The name in the header still leads to the parent; none of these may crash or over-read.
	for c in loc.0.length=4294967295 loc.0.length=65538 loc.0.length=3 loc.1.length=0 \
		loc.1.offset=0xffffffffffffffff loc.1.offset=0x7fffffffffffff00 loc.1.offset=99999999 \
		loc.0.space=4294967295 loc.1.space=0; do
		cp leaf.avhd ../whole
		model poke leaf.avhd $c
		run --separate-stderr limited vhd-sum leaf.avhd
		right_or_refused
		unchanged leaf.avhd -- limited vhd-info --json leaf.avhd
		[ "$status" -eq 0 ] || [ "$status" -eq 65 ] || fail "$c"
		[ -n "$output$stderr" ]
		mv ../whole leaf.avhd
	done
}

@test "a locator of 64 KiB" {
	model make long.avhd --parent=base.vhd --text=".\\$(printf '%32760s' base.vhd | tr ' ' x)" --name=base.vhd
	run --separate-stderr limited vhd-info --json long.avhd
	[ "$status" -eq 0 ] || [ "$status" -eq 65 ] || fail "status"
	run --separate-stderr limited vhd-sum long.avhd
	[ "$status" -eq 0 ] || [ "$status" -eq 65 ] || [ "$status" -eq 66 ] || fail "status"
	[ -n "$output$stderr" ]
}

@test "lone surrogates and NULs in names" {
	model make odd.avhd --parent=base.vhd --name=base.vhd
	model poke odd.avhd "head.name=hex:d800dc00dfff0000$(printf '%01008d' 0)"
	for c in "vhd-info odd.avhd" "vhd-info --json odd.avhd" "vhd-info --chain odd.avhd"; do
		# shellcheck disable=SC2086
		run --separate-stderr limited $c
		[ "$status" -lt 128 ]
		[ -n "$output$stderr" ]
	done
}

@test "a disk that is its own parent" {
	cp leaf.avhd self.avhd
	uid=$(field leaf.avhd foot.uid)
	model poke leaf.avhd head.puid=hex:$uid loc.0.text='.\leaf.avhd' loc.1.text='.\leaf.avhd'
	rm self.avhd
	all_refuse 65
}

@test "its own parent through a hard link and a copy" {
	uid=$(field leaf.avhd foot.uid)
	model poke leaf.avhd head.puid=hex:$uid loc.0.text='.\twin.avhd' loc.1.text='.\twin.avhd'
	ln leaf.avhd twin.avhd
	all_refuse 65
	rm twin.avhd
	cp leaf.avhd twin.avhd
	all_refuse 65
}

@test "two disks that are each other's parents" {
	model make other.avhd --parent=leaf.avhd --seed=5
	model poke leaf.avhd head.puid=hex:"$(field other.avhd foot.uid)" \
		loc.0.text='.\other.avhd' loc.1.text='.\other.avhd'
	all_refuse 65
}

@test "a chain of 300" {
	"$python" - "$top/tests/model" <<-'END'
		import random, sys
		sys.path.insert(0, sys.argv[1])
		import vhdmodel
		vhdmodel.create('c0.vhd', 65536, block=65536)
		for i in range(1, 300):
		    vhdmodel.create('c%d.vhd' % i, 65536, 'differencing', block=65536, parent='c%d.vhd' % (i - 1))
	END
	rm leaf.avhd
	cp c299.vhd leaf.avhd
	refused 65 vhd-sum leaf.avhd
	[[ $stderr == *256* ]]
	refused 65 vhd-merge leaf.avhd
	refused 65 vhd-info --chain leaf.avhd
	vhd-sum c255.vhd
	refused 65 vhd-sum c256.vhd
	refused 65 vhd-snap c255.vhd
}

@test "a parent that is a FIFO, a device, a socket or a folder" {
	for p in fifo null folder socket; do
		rm -rf base.vhd
		case $p in
		fifo) mkfifo base.vhd ;;
		null) mknod base.vhd c 1 3 2>/dev/null || continue ;;
		folder) mkdir base.vhd ;;
		socket) "$python" -c 'import socket; socket.socket(socket.AF_UNIX).bind("base.vhd")' ;;
		esac
		for c in vhd-sum "vhd-merge --dry-run" "vhd-info --chain" vhd-merge vhd-snap; do
			# shellcheck disable=SC2086
			refused 65 $c leaf.avhd
		done
	done
}

@test "a disk that is a FIFO does not hang a tool" {
	rm leaf.avhd
	mkfifo leaf.avhd
	for c in vhd-sum vhd-merge vhd-info vhd-snap "vhd-convert --type=raw"; do
		# shellcheck disable=SC2086
		refused 65 $c leaf.avhd ${c:+$([[ $c != *raw ]] || echo out)}
	done
}

@test "/dev/zero and /dev/null as a disk" {
	for d in /dev/zero /dev/null /dev/tty; do
		[ -e $d ] || continue
		refused 65 vhd-sum $d
		refused 65 vhd-info $d
		refused 65 vhd-merge $d
	done
}

# outside TEXT…: leaf.avhd names the file ../secret/base.vhd, with these changes
outside() {
	mkdir -p ../secret
	[ ! -e base.vhd ] || mv base.vhd ../secret/base.vhd
	before=$(sha ../secret/base.vhd)
	for c in vhd-sum vhd-merge "vhd-merge --force" vhd-snap "vhd-info --chain" "vhd-info --map" \
		"vhd-resize --size=16M" "vhd-resize --force --size=4K"; do
		# shellcheck disable=SC2086
		refused "${want:-65}" $c leaf.avhd
		[ "${want:-65}" -eq 66 ] || [[ $stderr == *--parent-dir=* ]] || fail "$c: which option?"
	done
	[ "$(sha ../secret/base.vhd)" = "$before" ]
}

@test "a parent path that leads out with .. is refused, with the option that allows it" {
	model poke leaf.avhd loc.1.text='..\secret\base.vhd'
	outside
	option=$(grep -oE -e '--parent-dir=[^ ]*secret' <<<"$stderr" | head -n 1)
	[ -n "$option" ] || fail "no option"
	vhd-sum "$option" leaf.avhd
	vhd-sum --parent-anywhere leaf.avhd
}

@test "many .. and mixed slashes are not better" {
	here=$(basename "$PWD")
	for t in '.\..\secret\base.vhd' './../secret/base.vhd' ".\\..\\$here\\..\\secret\\base.vhd" \
		'.\x\..\..\secret\base.vhd' '..\\\\secret\\\\base.vhd'; do
		mkdir -p x
		model poke leaf.avhd loc.1.text="$t"
		mkdir -p ../secret
		[ ! -e base.vhd ] || mv base.vhd ../secret/base.vhd
		refused 65 vhd-sum leaf.avhd
		refused 65 vhd-merge leaf.avhd
	done
}

@test "an absolute parent path is not followed" {
	mkdir -p ../secret
	abs=$(realpath ../secret)
	model make leaf.avhd --parent=base.vhd --locators=MacX --text="$abs/base.vhd" --name=none.vhd
	mv base.vhd ../secret/
	before=$(sha ../secret/base.vhd)
	for c in vhd-sum vhd-merge vhd-snap; do
		run --separate-stderr limited $c leaf.avhd
		[ "$status" -eq 65 ] || [ "$status" -eq 66 ] || fail "$c"
	done
	[ "$(sha ../secret/base.vhd)" = "$before" ]
}

@test "no merge writes through a link that leads out of the folder" {
	mkdir -p ../secret
	mv base.vhd ../secret/base.vhd
	ln -s ../secret/base.vhd base.vhd
	before=$(sha ../secret/base.vhd)
	refused 65 vhd-merge leaf.avhd
	[ "$(sha ../secret/base.vhd)" = "$before" ]
}

@test "a folder that is a link leads out as well as a file that is one" {
	mkdir ../secret
	mv base.vhd ../secret/
	ln -s ../secret sub
	for t in '.\sub\base.vhd' '.\sub\.\base.vhd' '.\sub\..\secret\base.vhd'; do
		model poke leaf.avhd loc.1.text="$t"
		for c in vhd-sum vhd-merge "vhd-resize --size=16M"; do
			# shellcheck disable=SC2086
			refused 65 $c leaf.avhd
		done
	done
	# Nor does an allowed folder allow what its links lead to.
	mkdir ok
	ln -s ../../secret ok/sub
	model poke leaf.avhd loc.1.text='.\ok\sub\base.vhd'
	refused 65 vhd-sum --parent-dir=ok leaf.avhd
	ln -s ../../secret/base.vhd ok/base.vhd
	refused 65 vhd-sum --parent-dir=ok leaf.avhd
	vhd-sum --parent-dir=../secret leaf.avhd
}

@test "links to FIFOs and devices, under every name that a child can give" {
	mkdir dev
	mkfifo dev/fifo
	rm base.vhd
	for to in dev/fifo /dev/zero /dev/tty .; do
		ln -sfn $to base.vhd
		ln -sfn $to BASE.VHD
		refused 65 vhd-sum leaf.avhd
		refused 65 vhd-merge leaf.avhd
		refused 65 vhd-sum --parent-dir=dev --parent-anywhere leaf.avhd
		refused 65 vhd-reparent --force --parent=base.vhd leaf.avhd
	done
}

@test "what stands beside a disk is read only if it is a file" {
	for suffix in merging rollback; do
		for to in fifo /dev/zero ../secret; do
			rm -rf "base.vhd.$suffix" "leaf.avhd.$suffix"
			[ $to != fifo ] || mkfifo fifo 2>/dev/null || :
			ln -sfn $to "base.vhd.$suffix"
			for c in vhd-sum vhd-merge "vhd-resize --size=16M"; do
				# shellcheck disable=SC2086
				run --separate-stderr limited $c leaf.avhd
				[ "$status" -eq 65 ] || [ "$status" -eq 75 ] || [ "$status" -eq 66 ] || fail "$c: $to"
			done
		done
		rm -f "base.vhd.$suffix"
	done
}

# swapped A B COMMAND…: under 200 ways in which somebody could exchange the names A and B while the
# command opens leaf.avhd: never the secret. Both are seen, what is right and a refusal.
swapped() {
	local a=$1 b=$2 seed so=$BATS_FILE_TMPDIR/swap.so right=0 refused=0
	shift 2
	[ -f "$so" ] || "${CC:-cc}" -shared -fPIC -o "$so" "$BATS_TEST_DIRNAME/model/swap.c" -ldl
	for seed in $(seq 0 200); do
		run --separate-stderr limited env ASAN_OPTIONS=verify_asan_link_order=0:detect_leaks=0 \
			LD_PRELOAD="$so" SWAP_A="$a" SWAP_B="$b" SWAP_SEED="$seed" "$@" leaf.avhd
		case $status in
		0)
			[ "${output%% *}" = "$(cut -d' ' -f1 ../sums)" ] || fail "it read the secret, seed $seed"
			right=$((right + 1))
			;;
		65 | 66) refused=$((refused + 1)) ;;
		*) fail "status $status, seed $seed" ;;
		esac
	done
	[ "$refused" -gt 0 ] && [ "$right" -gt 0 ] || fail "no race: $right right, $refused refused"
}

# The same disk with other content, where nobody may read it.
secret() {
	mkdir ../secret
	cp base.vhd ../secret/base.vhd
	model write ../secret/base.vhd --fill=90:4K --seed=66
}

@test "a file that becomes a link between the look and the open" {
	secret
	ln -s ../secret/base.vhd other
	swapped base.vhd other vhd-sum
}

@test "a folder that becomes a link between the look and the open" {
	secret
	mkdir here
	mv base.vhd here/
	ln -s ../secret link
	model poke leaf.avhd loc.1.text='.\here\base.vhd'
	swapped here link vhd-sum --parent-dir="$PWD"
}

@test "a raw parent elsewhere is not a way to read any file" {
	head -c 8M /dev/urandom >../secret.txt
	model make leaf.avhd --size=8M --parent=../secret.txt --raw-parent --text='..\secret.txt'
	for c in vhd-sum "vhd-convert --type=raw" vhd-merge; do
		# shellcheck disable=SC2046,SC2086
		refused 65 $c leaf.avhd $([[ $c != *raw ]] || echo out)
	done
	[ ! -e out ]
}

@test "a raw parent that is really a VHD is not taken for raw bytes" {
	model make leaf.avhd --size=8M --parent=base.vhd --raw-parent
	run --separate-stderr limited vhd-sum leaf.avhd
	[ "$status" -eq 65 ] || [ -n "$stderr" ] || fail "without a word"
	unchanged base.vhd leaf.avhd -- vhd-merge leaf.avhd
	assert_status 65
}

@test "rubbish of every length" {
	for n in 0 1 8 511 512 513 1023 1024 1536 2048 4096 100000; do
		for f in zero urandom; do
			head -c $n /dev/$f >leaf.avhd
			for c in vhd-merge vhd-snap "vhd-info --chain"; do
				# shellcheck disable=SC2086
				run --separate-stderr limited $c leaf.avhd
				[ "$status" -eq 65 ] || [ "$status" -eq 0 ] || fail "$c of $n bytes"
			done
		done
		{ printf conectix; head -c $n /dev/urandom; } >leaf.avhd
		refused 65 vhd-merge leaf.avhd
		refused 65 vhd-sum leaf.avhd
	done
}

@test "random bytes in the structures: no crash, no hang, no memory" {
	# The structures of 60 damaged disks, half of them with right checksums.
	"$python" - "$top/tests/model" "$chance" >seed <<-'END'
		import random, sys
		sys.path.insert(0, sys.argv[1])
		import vhdmodel
		seed = int(sys.argv[2])
		print('seed', seed)
		r = random.Random(seed)
		good = open('leaf.avhd', 'rb').read(4096)
		for i in range(60):
		    d = bytearray(good)
		    for _ in range(r.randrange(1, 6)):
		        at = r.choice([r.randrange(86), 512 + r.randrange(64), 512 + 576 + r.randrange(192), 1536 + r.randrange(512)])
		        d[at] = r.choice([0, 1, 127, 128, 255, r.randrange(256)])
		    if i % 2:
		        d[:512] = vhdmodel.footer_of(d[:512]).pack()
		        d[512:1536] = vhdmodel.header_of(d[512:1536]).pack()
		    open('%d.head' % i, 'wb').write(d)
	END
	truncate -s -512 leaf.avhd # only the front footer is left
	for i in $(seq 0 59); do
		dd if=$i.head of=leaf.avhd bs=4096 conv=notrunc status=none
		for c in "vhd-sum leaf.avhd" "vhd-info --chain --map --json leaf.avhd" "vhd-merge --dry-run leaf.avhd"; do
			# shellcheck disable=SC2086
			run --separate-stderr limited $c
			case $status in 0) ;; 65 | 66) saw=yes ;; *) fail "$c, number $i of $(cat seed)" "$stderr" ;; esac
			[[ $stderr != *Sanitizer* && $stderr != *runtime\ error* ]] || fail "$stderr"
		done
	done
	[ -n "$saw" ]
}

@test "a huge table does not cost its size in memory" {
	vhd-create --size=2040G --block-size=512K big.vhd
	MEMORY=100000 refused_not vhd-sum big.vhd
	MEMORY=100000 refused_not vhd-info --map big.vhd
}

refused_not() {
	run --separate-stderr limited "$@"
	assert_status 0
	[ -n "$output" ]
}

@test "a table of 4 thousand million entries in a sparse file" {
	model poke leaf.avhd head.entries=4294967295 head.table_offset=1073741824
	truncate -s 20G leaf.avhd
	model poke --which=front leaf.avhd foot.features=2
	run --separate-stderr limited vhd-sum leaf.avhd
	right_or_refused
}

@test "weak point 1: a merge where the block size is not 2 MiB" {
	for b in 4K 512K 8M; do
		model make b.vhd --size=8M --block=$b --fill=20:4K --raw=b.raw
		model make l.avhd --parent=b.vhd --block=$b --fill=40:512 --raw=b.raw --seed=4
		vhd-merge --delete l.avhd >/dev/null
		is_raw b.vhd b.raw
		rm b.vhd b.raw
	done
}

@test "weak point 2: wrong parent, cut child: refused before the first byte" {
	cp base.vhd ../base; cp leaf.avhd ../leaf
	model poke base.vhd foot.uid=hex:ffffffffffffffffffffffffffffffff
	unchanged base.vhd leaf.avhd -- vhd-merge leaf.avhd
	assert_status 65
	cp ../base base.vhd
	head -c $(($(stat -c %s ../leaf) - 30000)) ../leaf >leaf.avhd
	unchanged base.vhd leaf.avhd -- vhd-merge leaf.avhd
	assert_status 65
}

@test "weak point 2: a larger child leaves no half-written parent: it grows" {
	model cat base.vhd >raw
	truncate -s 16M raw
	model make leaf.avhd --parent=base.vhd --size=16M --fill=40:4K --raw=raw
	vhd-merge -q leaf.avhd
	is_raw base.vhd raw
	sound base.vhd
}

@test "weak point 3: killed while the batmap is written, and an fsync that fails" {
	need strace
	for how in kill error power; do
		mkdir ../$how
		run env -C ../$how PYTHONDONTWRITEBYTECODE=1 "$python" "$top/tests/model/mergefaults.py" $how tap --most=12
		assert_status 0
	done
}

@test "weak point 4: scattered sectors need few system calls" {
	need strace
	model make b.vhd --size=32M --fill=16:2M --seq --zeros=0
	model make l.avhd --parent=b.vhd --fill=400:4K --zeros=0 --seed=4
	run env ASAN_OPTIONS=detect_leaks=0 strace -f -c -o count -e trace=pread64,pwrite64,ftruncate,fsync,fdatasync vhd-merge l.avhd
	assert_status 0
	calls=$(awk '/pread64|pwrite64|ftruncate|sync/ { n += $4 } END { print n + 0 }' count)
	[ "$calls" -gt 400 ] && [ "$calls" -lt 1800 ] || fail "$(cat count)"
}

@test "weak point 5: a checkpoint onto itself, a disk made over another" {
	unchanged leaf.avhd base.vhd -- vhd-snap --output=leaf.avhd leaf.avhd
	[ "$status" -ne 0 ]
	unchanged leaf.avhd base.vhd -- vhd-snap --output=base.vhd leaf.avhd
	[ "$status" -ne 0 ]
	unchanged leaf.avhd base.vhd -- vhd-create --size=1M leaf.avhd
	assert_status 73
	for to in leaf.avhd base.vhd ./base.vhd; do
		unchanged leaf.avhd base.vhd -- vhd-convert --force --type=dynamic leaf.avhd $to
		assert_status 64
		unchanged leaf.avhd base.vhd -- vhd-reparent --force --parent=leaf.avhd leaf.avhd
		assert_status 65
	done
}

@test "weak point 7: good Hyper-V children are accepted where only the relative path leads home" {
	rm leaf.avhd
	model make hv.avhd --parent=base.vhd --absolute='C:\Users\Public\Documents\' --name='C:\Users\Public\Documents\base.vhd'
	model write hv.avhd --fill=20:512 --raw=hv.raw
	run --separate-stderr vhd-info --chain hv.avhd
	assert_status 0
	assert_output_has base.vhd
	cp hv.avhd ../hv.avhd
	vhd-merge hv.avhd
	model cmp base.vhd hv.avhd
}

@test "weak point 7: tables that wrap, cut blocks, loops and larger children are not" {
	b=$(used_blocks leaf.avhd | head -n 1)
	damage leaf.avhd bat.$b=4294967200
	cp leaf.avhd ../whole
	truncate -s -20000 leaf.avhd
	all_refuse 65
	cp ../whole leaf.avhd
	model make leaf.avhd --parent=base.vhd --size=16M --fill=40:4K
	unchanged base.vhd leaf.avhd -- vhd-check leaf.avhd
	assert_status 65
	assert_output_has parent-wrong-size
}

@test "weak point 7: the table of a full disk of 2040 GiB is checked in seconds" {
	"$python" - "$top/tests/model" <<-'END'
		import array, os, random, sys
		sys.path.insert(0, sys.argv[1])
		import vhdmodel
		size, n = 2040 << 30, 2040 * 512
		vhdmodel.create('big.vhd', size)
		f = vhdmodel.Layer('big.vhd', write=True)
		first = (f.head.table_offset + vhdmodel.up(n * 4, 4096) + 4096 - 512) // 512
		t = array.array('I', (first + i * 4104 for i in range(n)))
		part = t[1000:n - 1000]
		random.Random(1).shuffle(part)
		t[1000:n - 1000] = part
		t.byteswap()
		end = (first + n * 4104) * 512
		os.ftruncate(f.fd, f.length - 512)
		os.pwrite(f.fd, t.tobytes(), f.head.table_offset)
		os.pwrite(f.fd, f.foot.raw, end)
		vhdmodel.create('big.avhd', size, 'differencing', parent='big.vhd')
	END
	run --separate-stderr limited vhd-merge --dry-run big.avhd
	assert_status 0
	model poke big.vhd bat.900000="$(field big.vhd bat.500000)"
	refused 65 vhd-merge --dry-run big.avhd
}

@test "weak point 8: a crafted child cannot overwrite a file outside its folder" {
	model poke leaf.avhd loc.1.text='..\secret\base.vhd'
	outside
}

@test "weak point 8: a bad header costs no seconds of retries" {
	model poke --keep-sums leaf.avhd head.cookie=xxsparse
	need strace
	refused 65 vhd-merge leaf.avhd
	run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=pread64,nanosleep,clock_nanosleep \
		vhd-merge leaf.avhd
	[ "$(grep -c xxsparse trace)" -eq 1 ] || fail "$(cat trace)"
	run ! grep 'nanosleep.*tv_sec=[1-9]' trace
}

@test "weak point 9: names that are not ASCII, and other drives" {
	model make 'Größe 盘.vhd' --size=1M --fill=3:4K --raw=g.raw
	model make g.avhd --parent='Größe 盘.vhd' --absolute='D:\Daten\' --fill=9:512 --raw=g.raw --seed=5
	vhd-merge g.avhd
	is_raw 'Größe 盘.vhd' g.raw
	child=$(vhd-snap 'Größe 盘.vhd')
	sound --strict "$child"
	[ "$(field "$child" loc.1.text)" = '.\Größe 盘.vhd' ] || [ "$(field "$child" loc.0.text)" = '.\Größe 盘.vhd' ]
}

@test "weak point 9: a link is mended with names that are not ASCII, and an absolute one that is" {
	mkdir 'ordner ü' && mv base.vhd 'ordner ü/基.vhd'
	vhd-reparent -q --parent='ordner ü/基.vhd' leaf.avhd
	for i in 0 1; do
		t=$(field leaf.avhd loc.$i.text)
		case $(field leaf.avhd loc.$i.code) in
		"b'W2ku'") [ "$t" = "$(realpath 'ordner ü/基.vhd' | tr / '\\')" ] || fail "$t" ;;
		*) [ "$t" = '.\ordner ü\基.vhd' ] || fail "$t" ;;
		esac
	done
	vhd-sum --parent-dir='ordner ü' leaf.avhd
}

@test "weak point 9: the absolute locator is absolute" {
	child=$(vhd-snap base.vhd)
	sound --strict "$child"
	for i in 0 1; do
		[ "$(field "$child" loc.$i.code)" = "b'W2ku'" ] || continue
		t=$(field "$child" loc.$i.text)
		[[ $t != .* && $t == *base.vhd ]] || fail "$t"
	done
}

@test "weak point 10: errors go to standard error with a word of what, and a status" {
	for c in vhd-create vhd-info vhd-merge vhd-sum vhd-convert vhd-snap; do
		refused 64 $c --nonsense
		[[ $stderr == *nonsense* ]] || fail "$c"
	done
	refused 66 vhd-sum gone.vhd
	[[ $stderr == *gone.vhd* && $stderr == *"No such file"* ]]
}

@test "weak point 10: counts of more than 32 bits, JSON, progress, locks, a page" {
	vhd-create --size=2040G big.vhd
	run --separate-stderr vhd-info --json big.vhd
	[ "$(json '.files[0].size')" = 2190433320960 ]
	run --separate-stderr vhd-sum --progress=json leaf.avhd
	[ "$(tail -n 1 <<<"$stderr" | jq .total)" = 8388608 ]
	hold leaf.avhd write
	for c in vhd-sum vhd-merge vhd-snap "vhd-resize --size=16M" "vhd-reparent --parent=base.vhd"; do
		# shellcheck disable=SC2086
		refused 75 $c leaf.avhd
		[[ $stderr == *locked* ]]
	done
	release
	for c in vhd-resize vhd-reparent; do
		[ -f "$top/man/$c.1" ]
	done
}
