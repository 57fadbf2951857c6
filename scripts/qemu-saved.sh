# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=sh
#
# The state of a guest that was put aside, in DIR/saved.
# Part of hv-qemu, which sources it; most variables here are the script's.
# shellcheck disable=SC2034,SC2154

read_starts() {
	starts=$(cat "$dir/starts" 2>/dev/null) || starts=0
	case $starts in
	'' | *[!0-9]*) die 65 "$dir/starts holds no number" ;;
	esac
}

count_start() {
	read_starts
	[ -z "$saved" ] || store "$dir/saved/text" "$(saved_text $((starts + 1)))$NL"
	store "$dir/starts" "$((starts + 1))$NL"
}

# Whether there is one: saved, and what its text says. It is good as long as the VM was not started
# more often than it says: whoever takes it allows one start more first, and renames it away before
# the CPUs go on. So no crash lets it be used over disks that were written to since.
read_saved() {
	saved='' saved_starts='' saved_mode='' saved_bytes='' saved_sum=''
	[ -f "$dir/saved/text" ] || return 0
	while read -r key value; do
		case $key in
		starts) saved_starts=$value ;;
		mode) saved_mode=$value ;;
		bytes) saved_bytes=$value ;;
		xxh128) saved_sum=$value ;;
		esac
	done <"$dir/saved/text"
	read_starts
	case $saved_starts in
	'' | *[!0-9]*) return 0 ;;
	esac
	[ "$starts" -gt "$saved_starts" ] || saved=1
}
saved='' saved_starts='' saved_mode='' saved_bytes='' saved_sum='' starts=0

saved_text() { # STARTS: the same with another number
	printf 'starts %d\nmode %s\nbytes %d\nxxh128 %s\n' "$1" "$saved_mode" "$saved_bytes" "$saved_sum"
}

# By one rename: it is there or not, never in part.
rename_saved() {
	rm -rf -- "$dir/saved.gone"
	mv -T -- "$dir/saved" "$dir/saved.gone" || die 74 "cannot rename $dir/saved"
}

drop_saved() {
	if [ -e "$dir/saved" ]; then
		rename_saved
		durable "$dir"
	fi
	rm -rf -- "$dir/saved.gone" "$dir/saved.new"
	saved=''
}

# What is complete in saved.new becomes the VM's saved state. Needs saved_mode, _bytes, _sum.
publish_saved() {
	read_starts
	saved_text "$starts" >"$dir/saved.new/text" || die 73 "cannot write $dir/saved.new/text"
	durable "$dir/saved.new/state" "$dir/saved.new/text" "$dir/saved.new"
	# A stale one.
	[ ! -e "$dir/saved" ] || rename_saved
	mv -T -- "$dir/saved.new" "$dir/saved" || die 74 "cannot rename $dir/saved.new"
	durable "$dir"
	rm -rf -- "$dir/saved.gone"
}

make_saved_new() {
	rm -rf -- "$dir/saved.new"
	mkdir -- "$dir/saved.new" || die 73 "cannot make $dir/saved.new"
}

# Before it is read: a state that rotted would be a guest that does no one knows what.
check_saved() {
	need xxh128sum
	sum_of "$dir/saved/state"
	[ "$sum" = "$saved_sum" ] ||
		die 65 "$name: its saved state is damaged; after 'hv-qemu discard' it boots from its disks"
}

# Of a guest that was put aside, for who takes it elsewhere. It stays saved here.
copy_saved() {
	if [ -z "$file" ]; then
		tear_down
		say "$name is saved already"
		return 0
	fi
	check_saved
	if [ "$file" = - ]; then
		cat -- "$dir/saved/state" || die 74 "the state could not be written"
	else
		on_exit="$on_exit save_undo"
		save_tmp=$(mktemp "$file.XXXXXX") || die 73 "cannot create a file beside $file"
		cat -- "$dir/saved/state" >"$save_tmp" || die 74 "cannot write $save_tmp"
		publish_state
	fi
	print_receipt "$saved_bytes" "$saved_sum"
}

# stdin: the state of a guest that was saved elsewhere, on disks with this content.
take_in() {
	need xxh128sum
	case $record in
	owner | pending) ;;
	*) need_owner ;;
	esac
	read_state
	case $state/$record in
	off/* | saved/pending) ;;
	*) die 75 "$name is $state: a state is only taken in by a VM that is off" ;;
	esac
	on_exit="$on_exit remove_saved_new"
	make_saved_new
	# In the background: a signal ends the waiting for a sender that went silent.
	exec 6<&0
	cat <&6 >"$dir/saved.new/state" 3>&- 6<&- 7>&- 8>&- 9>&- &
	send_pid=$!
	wait $send_pid || die 73 "cannot write $dir/saved.new/state"
	send_pid=''
	saved_bytes=$(wc -c <"$dir/saved.new/state")
	[ "$saved_bytes" -gt 0 ] || die 65 "the state is empty"
	sum_of "$dir/saved.new/state"
	saved_sum=$sum saved_mode=running
	[ -z "$opt_paused" ] || saved_mode=paused
	publish_saved
	file=''
	print_receipt "$saved_bytes" "$saved_sum"
	say "$name is saved"
}

remove_saved_new() {
	[ -z "$send_pid" ] || kill -9 "$send_pid" 2>/dev/null
	rm -rf -- "$dir/saved.new"
}

verb_discard() {
	one_vm "$@"
	lock_vm
	read_state
	case $state/$record in
	saved/pending | saved/moved) die 75 "$name is being moved: its state is not dropped" ;;
	saved/*) tear_down ;;
	esac
	[ ! -e "$dir/saved" ] || say "$name: its saved state is dropped"
	drop_saved
}
