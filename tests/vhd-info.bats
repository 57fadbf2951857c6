# SPDX-License-Identifier: BSD-2-Clause
# vhd-info: what a disk is, without touching it.
load helper
load disks

setup() {
	workdir
}

# layers OPTION… FILE: how many
layers() {
	vhd-info --chain --json "$@" | jq '.files[0].chain | length'
}

# base.vhd (dynamic), mid.avhd, leaf.avhd and leaf.raw, what the leaf reads as
chain() {
	model make base.vhd --size=8M --fill=30:4K --raw=leaf.raw
	model make mid.avhd --parent=base.vhd --fill=30:4K --raw=leaf.raw --seed=2 --block=512K
	model make leaf.avhd --parent=mid.avhd --fill=30:512 --raw=leaf.raw --seed=3 --block=64K
}

@test "text: type, size and identity of a disk" {
	model make disk.vhd --size=8M --uuid=000102030405060708090a0b0c0d0e0f
	run --separate-stderr vhd-info disk.vhd
	assert_status 0
	[ -z "$stderr" ]
	assert_output_has disk.vhd
	assert_output_has dynamic
	assert_output_has 8388608
	assert_output_has 00010203-0405-0607-0809-0a0b0c0d0e0f
}

@test "JSON of a dynamic disk" {
	model make disk.vhd --size=8M --uuid=000102030405060708090a0b0c0d0e0f --creator=win7 --fill=1:512
	run --separate-stderr vhd-info --json disk.vhd
	assert_status 0
	json '.version == 1 and (.files | length) == 1'
	json '.files[0] | .file == "disk.vhd" and .format == "vhd" and .type == "dynamic"'
	json '.files[0] | .size == 8388608 and .block_size == 2097152 and .blocks == 4'
	json '.files[0].uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"'
	json '.files[0] | .creator == "win " and .creator_version == "6.1"'
	json '.files[0].geometry == {cylinders: 240, heads: 4, sectors: 17}'
	json '.files[0] | (.saved_state, .hidden, .unlocked) == false'
	json ".files[0].file_size == $(stat -c %s disk.vhd)"
	json ".files[0].allocated == $(($(stat -c %b disk.vhd) * 512))"
	json '.files[0].created == "2022-03-07T20:26:40Z"'
	[ "$(jq -c '.files[0] | [.parent, .warning]' <<<"$output")" = '[null,null]' ]
	[ "$(jq -c '.files[0] | [has("chain"), has("map")]' <<<"$output")" = '[false,false]' ]
}

@test "JSON of a fixed and of a raw disk" {
	model make disk.vhd --kind=fixed --size=1M
	truncate -s 1M disk.raw
	run --separate-stderr vhd-info --json disk.vhd disk.raw
	assert_status 0
	json '.files[0] | .type == "fixed" and .format == "vhd" and .size == 1048576 and .block_size == 0'
	json '.files[1] | .type == "raw" and .format == "raw" and .size == 1048576 and .uuid == null'
	json '.files[1] | .creator == "" or .creator == null'
}

@test "JSON of a child names the parent that is not there" {
	chain
	rm base.vhd mid.avhd
	run --separate-stderr vhd-info --json leaf.avhd
	assert_status 0
	json '.files[0].type == "differencing"'
	json '.files[0].parent.name | endswith("mid.avhd")'
	json '.files[0].parent.uuid | length == 36'
	[ "$(jq .files[0].parent.file <<<"$output")" = null ]
}

@test "--chain: every layer from the leaf to the base" {
	chain
	run --separate-stderr vhd-info --chain --json leaf.avhd
	assert_status 0
	json '[.files[0].chain[].type] == ["differencing", "differencing", "dynamic"]'
	json '[.files[0].chain[].block_size] == [65536, 524288, 2097152]'
	json '[.files[0].chain[].file | split("/") | last] == ["leaf.avhd", "mid.avhd", "base.vhd"]'
	json '.files[0].chain[0].parent.uuid == .files[0].chain[1].uuid'
	json '.files[0].chain[1].parent.uuid == .files[0].chain[2].uuid'
	json '.files[0].parent.file | endswith("/mid.avhd")'
}

@test "--chain in text names every layer, the leaf first" {
	chain
	run --separate-stderr vhd-info --chain leaf.avhd
	assert_status 0
	[[ $output == *leaf.avhd*mid.avhd*base.vhd* ]]
}

@test "--chain fails where a parent is missing, with 66 and its name" {
	chain
	rm base.vhd
	refused 66 vhd-info --chain leaf.avhd
	[[ $stderr == *base.vhd* ]]
}

@test "--map tiles the disk, and its data is where it says" {
	chain
	run --separate-stderr vhd-info --map --chain --json leaf.avhd
	assert_status 0
	"$python" - "$output" <<-'END'
		import json, sys
		f = json.loads(sys.argv[1])['files'][0]
		want = open('leaf.raw', 'rb').read()
		files = [open(l['file'], 'rb').read() for l in f['chain']]
		pos, layers = 0, set()
		for r in f['map']:
		    assert r['offset'] == pos and r['length'] > 0, (r, pos)
		    here = want[pos:pos + r['length']]
		    if r['type'] == 'zero':
		        assert not any(here), r
		    else:
		        assert r['type'] == 'data', r
		        layers.add(r['layer'])
		        at = r['file_offset']
		        assert files[r['layer']][at:at + r['length']] == here, r
		    pos += r['length']
		assert pos == f['size'] == len(want)
		assert layers == {0, 1, 2}, layers
	END
}

@test "--map of an empty disk is one piece of zeros" {
	model make disk.vhd --size=1G
	run --separate-stderr vhd-info --map --json disk.vhd
	json '.files[0].map | (map(.length) | add) == 1073741824 and all(.type == "zero") and length < 4'
}

@test "--map in text" {
	chain
	run --separate-stderr vhd-info --map leaf.avhd
	assert_status 0
	assert_output_has data
	assert_output_has zero
}

@test "several files: all are shown, the first failure is the status" {
	model make a.vhd --size=1M
	model make b.vhd --size=2M
	run --separate-stderr vhd-info --json a.vhd gone.vhd b.vhd
	assert_status 66
	json '[.files[].size] == [1048576, 2097152]'
	[[ $stderr == *gone.vhd* ]]
}

@test "a file that is missing" {
	refused 66 vhd-info gone.vhd
	refused 66 vhd-info ''
}

@test "a file must be given" {
	refused 64 vhd-info
}

@test "a folder is refused" {
	mkdir folder
	refused 65 vhd-info folder
}

@test "an empty file is an empty raw disk or refused, but no crash" {
	touch empty
	run --separate-stderr vhd-info empty
	[ "$status" -eq 0 ] || [ "$status" -eq 65 ] || fail "status"
}

@test "nothing is ever written" {
	chain
	for o in "" --json --chain --map --unlocked; do
		unchanged base.vhd mid.avhd leaf.avhd -- vhd-info $o leaf.avhd
		assert_status 0
		[ -n "$output" ]
	done
}

@test "a lost end footer is a warning" {
	model make disk.vhd --size=8M --fill=3:4K
	truncate -s -512 disk.vhd
	run --separate-stderr vhd-info --json disk.vhd
	assert_status 0
	json '.files[0].warning | length > 0'
	json '.files[0].size == 8388608'
}

@test "a lost front footer is a warning" {
	model make disk.vhd --size=8M --fill=3:4K
	dd if=/dev/zero of=disk.vhd bs=512 count=1 conv=notrunc status=none
	run --separate-stderr vhd-info --json disk.vhd
	assert_status 0
	json '.files[0].warning | length > 0'
}

@test "footers that differ: the one at the end counts, with a warning" {
	model make disk.vhd --size=8M --fill=3:4K
	model poke --which=front disk.vhd foot.hidden=1
	run --separate-stderr vhd-info --json disk.vhd
	assert_status 0
	json '.files[0] | (.warning | length > 0) and (.hidden | not)'
}

@test "a footer of 511 bytes" {
	model make disk.vhd --size=8M --fill=3:4K --foot511
	run --separate-stderr vhd-info --json disk.vhd
	assert_status 0
	json '.files[0] | .type == "dynamic" and .size == 8388608'
	model make fixed.vhd --kind=fixed --size=1M --foot511
	run --separate-stderr vhd-info --json fixed.vhd
	assert_status 0
	json '.files[0] | .type == "fixed" and .size == 1048576'
}

@test "hidden and saved-state flags" {
	model make disk.vhd --size=1M --hidden=1 --saved=1 --creator=tap
	run --separate-stderr vhd-info --json disk.vhd
	assert_status 0
	json '.files[0] | .hidden and .saved_state'
}

@test "an unset time of creation is null" {
	model make disk.vhd --size=1M
	model poke disk.vhd foot.timestamp=0
	run --separate-stderr vhd-info --json disk.vhd
	[ "$(jq .files[0].created <<<"$output")" = null ]
}

@test "a creator code that is no text does not break the JSON" {
	model make disk.vhd --size=1M
	model poke disk.vhd foot.creator=hex:01220aff
	run --separate-stderr vhd-info --json disk.vhd
	assert_status 0
	json '.files[0].size == 1048576'
	run vhd-info disk.vhd
	[[ $output != *$'\x01'* && $output == *1048576* ]]
}

@test "a name with control characters cannot reach the terminal" {
	model make disk.vhd --parent-uuid=000102030405060708090a0b0c0d0e0f --size=1M \
		--text=$'.\\\e[31mred\nline.vhd' --name=$'\e[31mred\nline'
	run --separate-stderr vhd-info disk.vhd
	assert_status 0
	[[ $output != *$'\e'* && $output == *red* ]]
	run --separate-stderr vhd-info --json disk.vhd
	assert_status 0
	json .version
	run vhd-info --chain disk.vhd
	[[ $output != *$'\e'* ]]
}

@test "names with spaces, quotes, newlines and more" {
	for n in 'a b.vhd' "it's.vhd" 'q"q.vhd' $'new\nline.vhd' 'schön 盘.vhd' '\back.vhd' '$(x).vhd'; do
		model make "$n" --size=1M
		run --separate-stderr vhd-info --json "$n"
		assert_status 0
		[ "$(jq -r '.files[0].file + "."' <<<"$output")" = "$n." ] || fail "$n"
	done
}

@test "a name that is not UTF-8 does not break the JSON" {
	n=$'\xff\xfe.vhd'
	model make "$n" --size=1M
	run --separate-stderr vhd-info --json "$n"
	assert_status 0
	json '.files[0].size == 1048576'
}

@test "a disk locked by a writer is 75" {
	model make disk.vhd --size=1M
	hold disk.vhd write
	refused 75 vhd-info disk.vhd
	[[ $stderr == *disk.vhd* ]]
	[[ $stderr == *unlocked* ]] || fail "no word of --unlocked"
	release
	vhd-info disk.vhd
}

@test "the message says who holds the lock" {
	needs_root
	model make disk.vhd --size=1M
	hold disk.vhd write
	refused 75 vhd-info disk.vhd
	[[ $stderr == *$holder* ]] || fail "$stderr does not name $holder"
	release
}

@test "--unlocked looks at a disk in use, and says so" {
	model make disk.vhd --size=1M
	hold disk.vhd write
	run --separate-stderr vhd-info --unlocked --json disk.vhd
	assert_status 0
	json '.files[0] | .unlocked and .size == 1048576'
	run --separate-stderr vhd-info --unlocked disk.vhd
	assert_status 0
	[[ "$output$stderr" == *lock* ]]
	release
}

@test "a reader does not disturb" {
	model make disk.vhd --size=1M
	hold disk.vhd read
	run vhd-info disk.vhd
	assert_status 0
	assert_output_has dynamic
	release
}

@test "a parent elsewhere needs --parent-dir, and the refusal says which" {
	mkdir base child
	model make base/base.vhd --size=1M --fill=3:4K
	model make child/leaf.avhd --parent=base/base.vhd --text='..\base\base.vhd'
	refused 65 vhd-info --chain child/leaf.avhd
	[[ $stderr == *--parent-dir* ]]
	option=$(grep -oE -e "--parent-dir=[^ ]*base" <<<"$stderr" | head -n 1)
	[ -n "$option" ] || fail "no option to copy in: $stderr"
	run vhd-info --chain "$option" child/leaf.avhd
	assert_status 0
}

@test "--parent-dir, QSM_PARENT_PATH and --parent-anywhere each allow it" {
	mkdir base child other
	model make base/base.vhd --size=1M --fill=3:4K
	model make child/leaf.avhd --parent=base/base.vhd --text='..\base\base.vhd'
	vhd-info --chain --parent-dir=base child/leaf.avhd
	vhd-info --chain --parent-dir=other --parent-dir="$PWD/base" child/leaf.avhd
	vhd-info --chain --parent-dir=. child/leaf.avhd
	vhd-info --chain --parent-anywhere child/leaf.avhd
	QSM_PARENT_PATH=/nonexistent:$PWD/base vhd-info --chain child/leaf.avhd
	refused 65 vhd-info --chain --parent-dir=other child/leaf.avhd
	QSM_PARENT_PATH='' refused 65 vhd-info --chain child/leaf.avhd
}

@test "a folder whose name begins as an allowed one is not allowed" {
	mkdir base base2 child
	model make base2/base.vhd --size=1M
	model make child/leaf.avhd --parent=base2/base.vhd --text='..\base2\base.vhd'
	refused 65 vhd-info --chain --parent-dir=base child/leaf.avhd
	[ "$(layers --parent-dir=base2 child/leaf.avhd)" -eq 2 ]
}

@test "a link beside the child does not smuggle a parent in" {
	mkdir base child
	model make base/base.vhd --size=1M
	ln -s ../base/base.vhd child/base.vhd
	model make child/leaf.avhd --parent=base/base.vhd
	refused 65 vhd-info --chain child/leaf.avhd
	vhd-info --chain --parent-dir=base child/leaf.avhd
}

@test "a linked child is looked for beside the real one" {
	mkdir real
	model make real/base.vhd --size=1M
	model make real/leaf.avhd --parent=real/base.vhd
	ln -s real/leaf.avhd pointer
	run --separate-stderr vhd-info --chain --json pointer
	assert_status 0
	json '.files[0].chain | length == 2'
}

@test "a parent that moved into an allowed folder is found there" {
	mkdir base child
	model make base/base.vhd --size=1M
	model make child/leaf.avhd --parent=base/base.vhd
	[ "$(layers --parent-dir=base child/leaf.avhd)" -eq 2 ]
}

@test "the case of a Windows name does not matter" {
	model make Base.vhd --size=1M
	model make leaf.avhd --parent=Base.vhd --text='.\BASE.VHD'
	[ "$(layers leaf.avhd)" -eq 2 ]
}

@test "parents are found by each kind of locator" {
	model make base.vhd --size=1M
	for l in W2ru W2ku MacX Wi2r W2ku,W2ru MacX,W2ku,W2ru; do
		model make leaf.avhd --parent=base.vhd --locators=$l --name=other.vhd
		[ "$(layers leaf.avhd)" -eq 2 ] || fail "$l"
	done
	model make leaf.avhd --parent=base.vhd --locators=
	[ "$(layers leaf.avhd)" -eq 2 ]
}

@test "locators may begin at any slot, with their space in sectors or bytes" {
	model make base.vhd --size=1M
	model make leaf.avhd --parent=base.vhd --first-slot=6 --space=1
	[ "$(layers leaf.avhd)" -eq 2 ]
}

@test "a base with a non-ASCII name" {
	model make 'Bäse 盘 😀.vhd' --size=1M
	model make leaf.avhd --parent='Bäse 盘 😀.vhd'
	run --separate-stderr vhd-info --chain --json leaf.avhd
	assert_status 0
	json '.files[0].parent.file | endswith("/Bäse 盘 😀.vhd")'
}

@test "a raw parent" {
	truncate -s 1M base.raw
	model make leaf.avhd --parent=base.raw --raw-parent
	run --separate-stderr vhd-info --chain --json leaf.avhd
	assert_status 0
	json '.files[0].chain[1].type == "raw"'
	[ "$(jq .files[0].parent.uuid <<<"$output")" = null ]
}

@test "--quiet still prints the report" {
	model make disk.vhd --size=1M
	run --separate-stderr vhd-info --quiet disk.vhd
	assert_status 0
	assert_output_has dynamic
	[ -z "$stderr" ]
}

@test "an interrupted map is no success" {
	model make big.vhd --size=64M --block=4K --fill=8000:4K --zeros=0
	mkfifo out
	vhd-info --map big.vhd >out 2>err &
	pid=$!
	exec 8<out
	read -r _ <&8
	kill -TERM $pid
	cat <&8 >/dev/null
	exec 8<&-
	status=0
	wait $pid || status=$?
	[ "$status" -eq 75 ] || [ "$status" -eq 74 ] || fail "status $status"
	[ -s err ]
}

@test "--map of a chain with a shorter parent: zeros behind its end" {
	model make small.vhd --size=4M --fill=1024:4K --seq --zeros=0
	model make child.avhd --parent=small.vhd --size=8M --fill=1:4K --seq
	run --separate-stderr vhd-info --map --json child.avhd
	assert_status 0
	[ "$(json '.files[0].map[-1] | [.offset, .length, .type] | map(tostring) | join(" ")')" = "4194304 4194304 zero" ]
	[ "$(json '.files[0].map[0] | [.type, .layer] | map(tostring) | join(" ")')" = "data 0" ]
	[ "$(json '.files[0].map[1].layer')" = 1 ]
}

@test "--map walks a table of 2040 GiB in little memory and time" {
	vhd-create --size=2040G --block-size=512K big.vhd
	model write big.vhd --fill=3:4K --seq --zeros=0
	MEMORY=60000 run --separate-stderr limited vhd-info --map --json big.vhd
	assert_status 0
	[ "$(json '[.files[0].map[].length] | add')" = $((2040 << 30)) ]
}

@test "the size that a disk was made with" {
	vhd-create --size=4M d.vhd
	vhd-resize -q --size=6M d.vhd
	run --separate-stderr vhd-info --json d.vhd
	[ "$(json '.files[0] | [.original_size, .size] | map(tostring) | join(" ")')" = "4194304 6291456" ]
	run vhd-info d.vhd
	assert_output_has "originally  4194304 (4.0 MiB)"
}
