# What a command runs: finding it, and sending signals to it.

# Sets sd_marked to the pids that carry the mark $1 in their environment; fails when there are none. The command's
# mark is SANDHOLD_CALL=ID/, which also finds what left its process group and session; its owner's, SANDHOLD_OWNS=ID/.
sd_find_marked() {
    sd_marked=
    for sd_file in $(grep -lF "$1" /proc/[0-9]*/environ); do
        sd_file=${sd_file#/proc/}
        sd_marked="$sd_marked ${sd_file%/environ}"
    done
    [ "$sd_marked" ]
}

# Sets sd_members to what lives of the session that the command was started in, also without a mark and when its leader
# is dead. Fails when nothing does. Only a process that has left both its session and its environment is not found.
sd_find_members() {
    sd_members=
    for sd_file in "$sd_folder"/session.*; do
        sd_name=${sd_file##*/session.}
        sd_id=${sd_name%%.*}
        case $sd_id in '' | 0* | 1 | *[!0-9]*) continue ;; esac
        if sd_process "$sd_id"; then
            [ "$sd_born" = "${sd_name#*.}" ] || continue # the number is used again
        else
            # No pid is given out again while a session bears it. Without the owner, who knows what has been meanwhile.
            sd_owner_lives || continue
        fi
        # So many fields that no name of a program, of at most 15 characters, can look like them.
        for sd_file in $(grep -lE "\) [^XZ] [0-9]+ [0-9]+ $sd_id [0-9]+ -?[0-9]+ [0-9]+ [0-9]+ " /proc/[0-9]*/stat); do
            sd_file=${sd_file#/proc/}
            sd_members="$sd_members ${sd_file%/stat}"
        done
    done
    [ "$sd_members" ]
}

# Sets sd_leader to the process that leads the command's group: the child of its owner that has left the owner's
# session. Before that its group is the owner's. Puts its session on record.
sd_find_command() {
    sd_children= sd_leader=
    # Without a newline at its end, so that read fails.
    sd_owner_lives && read -r sd_children <"/proc/$sd_owner/task/$sd_owner/children"
    for sd_pid in $sd_children; do
        sd_process "$sd_pid" && [ "$sd_session" = "$sd_pid" ] && [ "$sd_status" != Z ] || continue
        sd_leader=$sd_pid
        printf '' >"$sd_folder/session.$sd_pid.$sd_born"
    done
    [ "$sd_leader" ]
}

# Sends the signal $1 to everything that belongs to the call sd_call: the command's process group, found as the
# owner's child, and the groups of whatever carries the mark or is in its session. Once to each: many programs take a second TERM for
# impatience. Fails when there was nothing to signal.
sd_signal() {
    sd_groups=" "
    sd_hit=
    sd_find_command && sd_signal_group "$1" "$sd_leader"
    sd_find_marked "SANDHOLD_CALL=$sd_call/"
    sd_find_members
    for sd_pid in $sd_marked $sd_members; do
        sd_process "$sd_pid" || continue
        if [ "$sd_session" != "$sd_owner_session" ]; then
            sd_signal_group "$1" "$sd_group"
        else
            kill "-$1" "$sd_pid" && sd_hit=1 # no setsid here: the group is not the command's own
        fi
    done
    [ "$sd_hit" ]
}

sd_signal_group() {
    case $sd_groups in *" $2 "*) return ;; esac
    sd_groups="$sd_groups$2 "
    kill "-$1" "-$2" && sd_hit=1
}
