# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=sh
#
# What there is, and what it does.
# Part of hv-qemu, which sources it; most variables here are the script's.
# shellcheck disable=SC2034,SC2154

verb_list() {
	[ $# -eq 0 ] || misuse "list: no argument is wanted"
	end='\n'
	[ -z "$opt_null" ] || end='\0'
	for d in "$QSM_VM_DIR"/*/; do
		d=${d%/}
		# shellcheck disable=SC2059
		[ ! -f "$d/domain.xml" ] || printf "%s$end" "${d##*/}" || die 74 "cannot write the list"
	done
}

leaf_of() { # TARGET
	readlink -f -- "$dir/disks/$1" || readlink -- "$dir/disks/$1"
}

verb_dumpxml() {
	one_vm "$@"
	if [ -z "$opt_leaves" ]; then
		cat -- "$dir/domain.xml" || die 74 "cannot write the domain"
		return
	fi
	load_domain "$dir/domain.xml"
	set -- --print
	for i in $all_disks; do
		disk "$i"
		set -- "$@" --disk="$d_target=$(leaf_of "$d_target")"
	done
	"$vm_import" "$@" <"$dir/domain.xml"
}

verb_status() {
	one_vm "$@"
	load_domain "$dir/domain.xml"
	monitor=status.sock monitor_wait=10
	read_state
	dead_servers
	[ -z "$reason" ] || warn "$name: $reason"
	[ -z "$dead" ] || warn "$name: the server of disk$dead died: 'hv-qemu repair' restarts it"
	if [ -z "$opt_json" ]; then
		printf '%s\n' "$state" || die 74 "cannot write the state"
		return
	fi
	set --
	for i in $all_disks; do
		disk "$i"
		serving=false
		! server_alive "$d_target" || serving=true
		set -- "$@" "$d_target" "$dir/disks/$d_target" "$(leaf_of "$d_target")" \
			"$rd/$d_target.ctl" "$rd/$d_target.nbd" "$serving"
	done
	qemu_alive || qemu_pid=''
	saved_json=null
	read_use
	[ "$state" != saved ] || saved_json=$(jq -n --arg mode "$saved_mode" --arg bytes "$saved_bytes" --arg sum "$saved_sum" \
		'{mode: $mode, bytes: ($bytes | tonumber), xxh128: $sum}') || die 65 "$dir/saved/text is damaged"
	printf '%s\n' "$dom_json" | jq -c --arg name "$name" --arg uuid "$uuid" --arg state "$state" \
		--arg reason "$reason" --arg owner "$record" --arg token "$rec_token" --arg to "$rec_to" \
		--arg starts "$(cat "$dir/starts" 2>/dev/null || echo 0)" --arg pid "$qemu_pid" \
		--argjson stats "$stats" --arg resident "$resident" --arg dir "$dir" --arg rundir "$rd" --argjson saved "$saved_json" \
		--arg parent_dirs "$(sed 's/$/./' "$dir/parent-dirs" 2>/dev/null)" \
		--argjson autostart "$(has_flag autostart)" --argjson ha "$(has_flag ha)" '
		def opt: if . == "" then null else . end;
		{version: 1, name: $name, uuid: $uuid, state: $state, reason: ($reason | opt),
		 owner: $owner, token: ($token | if . == "-" then null else opt end), to: ($to | opt),
		 starts: ($starts | tonumber), pid: ($pid | if . == "" then null else tonumber end),
		 resident: ($resident | if . == "" then null else tonumber * 1024 end),
		 saved: $saved, dir: $dir, rundir: $rundir,
		 disks: [$ARGS.positional as $a | range(0; $a | length; 6) as $i
			| {target: $a[$i], pointer: $a[$i + 1], leaf: $a[$i + 2], control: $a[$i + 3],
			   socket: $a[$i + 4], serving: ($a[$i + 5] == "true"),
			   written: ($stats | map(select(.qdev // "" | split("/") | index("disk-" + $a[$i])))
				| .[0].stats.wr_bytes)}],
		 parent_dirs: [$parent_dirs | split("\n")[] | .[:-1]], networks: .nics, autostart: $autostart, ha: $ha,
		 machine: .machine, cpu: .cpu, memory: .memory, vcpus: .vcpus,
		 unmovable: .unmovable}' --args -- "$@" || die 74 "cannot write the state"
}

# How much of its memory the guest has used, in KiB, and how much it wrote: what a move of it will
# cost. QEMU's own memory counts with it, but there is no more to send than the guest has.
read_use() {
	stats='[]' resident=''
	case $state in
	running | paused) ;;
	*) return 0 ;;
	esac
	resident=$(sed -n 's/^RssAnon:[[:space:]]*\([0-9]*\) kB/\1/p' "/proc/$qemu_pid/status" 2>/dev/null)
	[ -z "$resident" ] || [ "$resident" -le $((dom_memory / 1024)) ] || resident=$((dom_memory / 1024))
	if qmp '{"execute":"query-blockstats"}'; then
		stats=${qmp_line#'{"return":'}
		stats=${stats%'}'*}
	fi
}
stats='[]' resident=''

has_flag() { # FLAG
	if [ -e "$dir/$1" ]; then echo true; else echo false; fi
}
