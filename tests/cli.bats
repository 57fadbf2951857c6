# SPDX-License-Identifier: BSD-2-Clause
# Conventions of the tools that work on files (help, version and pages: house.bats).
load helper
load disks

tools="vhd-create vhd-info vhd-snap vhd-merge vhd-sum vhd-convert vhd-send vhd-recv vhd-stream vhd-check"

setup() {
	workdir
}

# pair: leaf.avhd on base.vhd
pair() {
	model make base.vhd --size=1M --fill=9:4K --raw=leaf.raw
	model make leaf.avhd --parent=base.vhd --fill=9:512 --raw=leaf.raw --seed=2
}

@test "-h is --help and -V is --version, on standard output" {
	for t in $tools; do
		for o in "-h --help" "-V --version"; do
			# shellcheck disable=SC2086
			set -- $o
			run --separate-stderr "$t" "$1"
			assert_status 0
			[ -n "$output" ] && [ -z "$stderr" ] || fail "$t $1"
			[ "$output" = "$("$t" "$2")" ] || fail "$t: $1 is not $2"
		done
	done
}

@test "--version names the tool and one version for all" {
	for t in $tools; do
		run "$t" --version
		[[ $output == "$t "*[0-9].[0-9]* ]] || fail "$t: $output"
		echo "${lines[0]#"$t "}" >>versions
	done
	[ "$(sort -u versions | wc -l)" -eq 1 ]
}

@test "--help shows how to call the tool, in lines that fit a terminal" {
	for t in $tools; do
		run "$t" --help
		[[ ${lines[0]} == "Usage: $t "* ]] || fail "$t"
		[ "$(wc -L <<<"$output")" -le 100 ] || fail "$t: too wide"
	done
}

@test "--help wins over mistakes elsewhere" {
	for t in $tools; do
		run --separate-stderr "$t" --help gone.vhd and more
		assert_status 0
		assert_output_has Usage
		run --separate-stderr "$t" --version gone.vhd and more
		assert_status 0
	done
}

@test "without arguments: 64, a message, and nothing on standard output" {
	for t in vhd-create vhd-info vhd-snap vhd-merge vhd-sum vhd-convert vhd-send vhd-recv; do
		refused 64 "$t" </dev/null
		[[ $stderr == "$t: "* ]] || fail "$t does not say its name: $stderr"
		[[ $stderr == *--help* ]] || fail "$t does not point to --help"
	done
}

@test "an unknown option is named" {
	for t in $tools; do
		refused 64 "$t" --bogus-thing
		[[ $stderr == *bogus-thing* ]] || fail "$t: $stderr"
		refused 64 "$t" -Z
		[[ $stderr == *Z* ]] || fail "$t: $stderr"
	done
}

@test "messages bear the name of the tool, not its path" {
	for t in $tools; do
		refused 64 "$(command -v "$t")" --bogus
		[ -z "$(grep -v "^\($t: \|Try \)" <<<"$stderr")" ] || fail "$stderr"
	done
}

@test "an option that needs a value says so" {
	refused 64 vhd-create --size
	refused 64 vhd-info --parent-dir
	refused 64 vhd-convert --type
	refused 64 vhd-sum --check
}

@test "an option that takes none refuses one" {
	for t in $tools; do
		refused 64 "$t" --quiet=yes x
	done
}

@test "progress is json or nothing" {
	pair
	for t in vhd-sum vhd-merge vhd-info; do
		refused 64 $t --progress=bar leaf.avhd
	done
}

@test "a full standard output is an I/O error, also for a result" {
	pair
	vhd-sum leaf.avhd >sums
	for c in "vhd-info leaf.avhd" "vhd-info --json leaf.avhd" "vhd-sum leaf.avhd" "vhd-sum --check sums" \
		"vhd-merge --dry-run leaf.avhd" "vhd-merge --json -n leaf.avhd" "vhd-convert --type=raw leaf.avhd -" \
		"vhd-sum --json leaf.avhd"; do
		run bash -c "$c >/dev/full"
		assert_status 74
		[ -n "$output" ] || fail "$c: without a word"
	done
}

@test "a closed standard output is an I/O error" {
	pair
	for c in "vhd-info leaf.avhd" "vhd-sum leaf.avhd" "vhd-sum --help"; do
		run bash -c "$c >&-"
		assert_status 74
	done
}

@test "a closed standard output does not make a disk the standard output" {
	pair
	before=$(sha base.vhd leaf.avhd)
	bash -c 'vhd-info leaf.avhd >&-' || :
	bash -c 'vhd-sum leaf.avhd >&- 2>&- <&-' || :
	bash -c 'vhd-create --size=1M new.vhd >&- 2>&- <&-' || :
	[ "$(sha base.vhd leaf.avhd)" = "$before" ]
	[ ! -e new.vhd ] || sound --strict new.vhd
}

@test "nothing that exists is overwritten, and no tool leaves a temporary file" {
	pair
	cp leaf.avhd there
	for c in "vhd-create --size=1M there" "vhd-convert --type=raw leaf.avhd there" \
		"vhd-convert --type=dynamic leaf.avhd there" "vhd-snap --output=there base.vhd"; do
		# shellcheck disable=SC2086
		unchanged there base.vhd leaf.avhd -- $c
		assert_status 73
		[[ $stderr == *there* ]] || fail "$c: $stderr"
	done
}

@test "-- ends the options of every tool" {
	pair
	mv leaf.avhd -- -leaf.avhd
	vhd-info -- -leaf.avhd
	vhd-sum -- -leaf.avhd
	vhd-convert --type=raw -- -leaf.avhd -out.raw
	cmp ./-out.raw leaf.raw
	vhd-snap --output=-snap.avhd -- -leaf.avhd
	is_raw ./-snap.avhd leaf.raw
	vhd-merge --delete -- -snap.avhd
	vhd-merge --delete -- -leaf.avhd
	is_raw base.vhd leaf.raw
}

@test "a name that begins with a dash is an option without --" {
	model make ./-leaf.vhd --size=1M
	refused 64 vhd-info -leaf.vhd
}

@test "the whole round with odd names" {
	for n in 'a b' "it's" 'q"q' $'new\nline' 'schön 盘 😀' '$(x)' '`y`' '*' 'tab	tab' '%s%n' '-dash'; do
		echo "name: $n"
		mkdir "./$n.d"
		( # no `||` after this, it would switch errexit off inside
			cd "./$n.d"
			vhd-create --size=1M -- "$n.vhd"
			vhd-snap --output="$n.avhd" -- "$n.vhd" >/dev/null
			sound --strict "./$n.vhd" "./$n.avhd"
			model write "./$n.avhd" --fill=9:512 --raw=want.raw
			vhd-convert --type=dynamic -- "$n.avhd" "$n.copy"
			is_raw "./$n.copy" want.raw
			vhd-merge --delete -- "$n.avhd" >/dev/null
			is_raw "./$n.vhd" want.raw
			vhd-sum -- "$n.vhd" >sums
			vhd-sum --check sums
			[ "$(vhd-info --chain --json -- "$n.vhd" | jq .version)" -eq 1 ]
		)
	done
}

@test "a name with backslashes, which Windows has no word for" {
	n='\back\slash.vhd'
	vhd-create --size=1M -- "$n"
	sound --strict "./$n"
	run --separate-stderr vhd-snap --output=leaf.avhd "$n"
	if [ "$status" -eq 0 ]; then
		model write leaf.avhd --fill=9:512
		vhd-merge --delete leaf.avhd
	else
		assert_status 65
		[ ! -e leaf.avhd ]
	fi
}

@test "a folder name with odd characters" {
	d=$'odd \'"\n盘 folder'
	mkdir "$d" other
	vhd-create --size=1M "$d/base.vhd"
	vhd-snap --output="$d/leaf.avhd" "$d/base.vhd"
	model write "$d/leaf.avhd" --fill=9:512 --raw=want.raw
	is_raw "$d/leaf.avhd" want.raw
	mv "$d/leaf.avhd" other
	vhd-sum --parent-dir="$d" other/leaf.avhd
}

@test "the longest names that a file system takes" {
	n=$(printf '%0251d' 1)
	vhd-create --size=1M "$n.vhd"
	vhd-convert --type=raw "$n.vhd" "$n.raw"
	[ "$(vhd-sum "$n.vhd" "$n.raw" | cut -d' ' -f1 | uniq | wc -l)" -eq 1 ]
	u=$(printf '盘%.0s' $(seq 83))
	vhd-create --size=1M "$u.vhd"
	child=$(vhd-snap --output=leaf.avhd "$u.vhd")
	vhd-sum "$child"
}

@test "a locale that is not UTF-8 makes no difference to names" {
	model make 'schön.vhd' --size=1M
	LC_ALL=C vhd-snap --output='schön.avhd' 'schön.vhd'
	sound --strict 'schön.avhd'
	[ "$(field 'schön.avhd' name)" = 'schön.vhd' ]
	LC_ALL=C vhd-sum 'schön.avhd'
}

@test "a file name that is not UTF-8 works or is refused, but says so" {
	n=$'\xff\xfe'
	vhd-create --size=1M "$n.vhd"
	run --separate-stderr vhd-snap --output=leaf.avhd "$n.vhd"
	if [ "$status" -eq 0 ]; then
		sound --strict leaf.avhd
		vhd-sum leaf.avhd
	else
		assert_status 65
		[ ! -e leaf.avhd ]
	fi
}

@test "sizes with suffixes are powers of 1024, in every tool that takes them" {
	vhd-create --size=1M a.vhd
	vhd-create --size=2m b.vhd 2>/dev/null || vhd-create --size=2M b.vhd
	[ "$(field a.vhd foot.size)" = 1048576 ]
	[ "$(field b.vhd foot.size)" = 2097152 ]
}

@test "no terminal, no progress bar" {
	pair
	for c in "vhd-sum leaf.avhd" "vhd-convert --type=raw leaf.avhd o1" "vhd-merge -n leaf.avhd"; do
		# shellcheck disable=SC2086
		run --separate-stderr $c
		assert_status 0
		[ -z "$stderr" ] || fail "$c: $stderr"
	done
	cmp o1 leaf.raw
}

@test "a terminal, and --quiet: no progress bar" {
	need script
	pair
	run script -qec "vhd-sum --quiet leaf.avhd" /dev/null </dev/null
	assert_status 0
	[ "${#lines[@]}" -eq 1 ]
	[[ $output != *%* ]]
}

@test "every tool can be called by a path and from another folder" {
	pair
	mkdir sub
	cd sub
	"$(command -v vhd-sum)" ../leaf.avhd
	vhd-info --chain ../leaf.avhd
	vhd-merge ../leaf.avhd
	is_raw ../base.vhd ../leaf.raw
}

@test "a relative path in QSM_PARENT_PATH" {
	pair
	mkdir elsewhere
	mv base.vhd elsewhere
	refused 66 vhd-sum leaf.avhd
	QSM_PARENT_PATH=elsewhere vhd-sum leaf.avhd
	QSM_PARENT_PATH=/none:elsewhere:/none vhd-sum leaf.avhd
}

@test "the pages tell every exit status that the tools can give" {
	for t in vhd-create vhd-info vhd-merge vhd-sum vhd-convert; do
		for s in 0 64 65 66 70 73 74 75 77; do
			grep -q "^\.It $s\$" "$top/man/$t.1" && continue
			case $t-$s in
			vhd-create-65 | vhd-create-66 | vhd-info-73 | vhd-sum-73) ;;
			*) fail "$t.1 does not name $s" ;;
			esac
		done
	done
}
