# Looks whether a clone whose command is over has left a credential behind, removes what it finds, and tells what there
# is now. A request of its own; it is not run by the launcher.
#
#   SANDHOLD_NONCE       frames the answer
#   SANDHOLD_FINISHES    the folder of the clone's call, by its name
#   SANDHOLD_PATTERNS    the credential, as it and as http sends it, a line each: escaped for printf, so that the
#                        processes of this request do not hold it. Empty when there is none
#   SANDHOLD_OWN         `yes` when it was made for this clone alone: then nobody else has a reason to hold it
#
# The answer's lines: `path`, `given`, `ours`, `url`, `commit`, `branch`, `asked`, `taken`, `refused`, each with what
# there is to say, and a line `found WHAT WHERE` for each finding.

exec 2>/dev/null
home=${HOME:-/tmp}
state=$home/.sandhold/calls/$SANDHOLD_FINISHES
patterns=$(printf %b "$SANDHOLD_PATTERNS")
tell() { printf '%s\n' "$1 $2"; }

# Noted before it is removed: whoever asks once more, as the answer was lost, is told of it too.
found() {
    printf '%s\n' "$1" >>"$state/found"
    tell found "$1"
}

# The lines of the files named as arguments that hold the credential are searched for from stdin: nothing of it is ever
# an argument.
holding() {
    [ "$patterns" ] && printf '%s\n' "$patterns" | grep -lsaF -f - -- "$@"
}

# Processes of the clone's command, and others that hold a credential of its own, each as /proc/PID/environ.
processes() {
    printf '%s\n' "SANDHOLD_CALL=$SANDHOLD_FINISHES/" | grep -lsaF -f - -- /proc/[0-9]*/environ
    [ "$SANDHOLD_OWN" = yes ] && holding /proc/[0-9]*/environ /proc/[0-9]*/cmdline
}

# What was running when the command ended takes a moment to go.
end_processes() {
    for pause in 0.1 0.2 0.3 0.5 1; do
        [ "$(processes)" ] || return 0
        sleep $pause || sleep 1
    done
    for file in $(processes); do
        pid=${file#/proc/}
        found "process ${pid%%/*}"
        kill -KILL "${pid%%/*}"
    done
}

# The file $1 of git's configuration, in the clone: no header, helper or address in it may be a credential.
check_config() {
    git config --file "$1" --name-only --get-regexp '^(http\.(.*\.)?(extraheader|cookiefile)|credential\.(.*\.)?helper)$' |
        while IFS= read -r key; do
            found "setting $key"
            git config --file "$1" --unset-all "$key"
        done
    git config --file "$1" --get-regexp '^(remote\..*\.(url|pushurl)|submodule\..*\.url)$' |
        while IFS=' ' read -r key value; do
            case $value in
            *://*@*) ;;
            *) continue ;;
            esac
            rest=${value#*://}
            authority=${rest%%/*}
            case $authority in
            *@*) user=${authority%@*} ;;
            *) continue ;;
            esac
            case $user in
            *:* | gh?_* | github_pat_* | glpat-*)
                found "address $key"
                git config --file "$1" --replace-all "$key" "${value%%://*}://${authority##*@}${rest#"$authority"}"
                ;;
            esac
        done
}

# Takes the lines with the credential out of the files given.
remove_from() {
    holding "$@" | while IFS= read -r file; do
        # The credential that daytona_git_credentials has put in place may be the very same.
        case $(readlink -- "$file") in
        /dev/shm/sandhold-git-*/hosts.yml | "$home/.sandhold/git/hosts.yml") continue ;;
        esac
        [ "$SANDHOLD_OWN" = yes ] || [ "$file" -nt "$state/clone" ] || continue
        found "file $file"
        left=$(printf '%s\n' "$patterns" | grep -vaF -f - -- "$file")
        printf '%s\n' "$left" >"$file"
    done
}

echo "<$SANDHOLD_NONCE"
if [ -f "$state/found" ]; then
    while IFS= read -r earlier; do tell found "$earlier"; done <"$state/found"
fi
end_processes
if { IFS= read -r path && IFS= read -r mark && IFS= read -r given; } <"$state/clone"; then
    tell path "$path"
    tell given "$given"
    rm -rf -- "${path%/*}/.sandhold-clone-$mark"
    remove_from "$home/.gitconfig" "$home/.config/git/config" "$home/.config/git/credentials" "$home/.git-credentials" \
        "$home/.netrc" "$home/.config/gh/hosts.yml" "$state/stdout" "$state/stderr"
    if [ "$(cat "$path/.git/sandhold-clone")" = "$mark" ]; then
        find "$path/.git" -name objects -prune -o -type f \( -name config -o -name config.worktree \) -print |
            while IFS= read -r file; do check_config "$file"; done
        find "$path/.git" -name objects -prune -o -type f -print | while IFS= read -r file; do remove_from "$file"; done
        tell ours yes
        tell url "$(git -C "$path" config --get remote.origin.url)"
        tell commit "$(git -C "$path" rev-parse --verify --quiet HEAD)"
        tell branch "$(git -C "$path" symbolic-ref --quiet --short HEAD)"
    fi
    for each in get:asked store:taken erase:refused; do
        [ -e "$state/git-${each%:*}" ] && tell "${each#*:}" yes
    done
fi
echo "$SANDHOLD_NONCE>"
