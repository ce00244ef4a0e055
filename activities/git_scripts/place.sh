# What installing and removing git's credential in a sandbox have in common; either comes behind.
#
#   SANDHOLD_NONCE   frames the answer: lines of a name and a value
#   SANDHOLD_NUMBER  of this change; one that was asked for before another that was made already is not made
#
# The one file with the credential is hosts.yml, in a folder that nobody else may enter: below /dev/shm where that is
# memory, else below the home.

exec 2>/dev/null
unset GIT_DIR GIT_WORK_TREE GIT_CONFIG GIT_CONFIG_COUNT GIT_CONFIG_PARAMETERS GIT_TRACE GIT_TRACE_SETUP GIT_TRACE2 \
    GIT_TRACE2_EVENT GIT_TRACE2_PERF
umask 077
cd /
home=${HOME:-/tmp}
ours=$home/.sandhold/git
shm=/dev/shm
memory=$shm/sandhold-git-$(id -u)
tell() { printf '%s\n' "$1 $2"; }

is_memory() {
    kind=
    while read -r _ where type _; do
        [ "$where" = "$shm" ] && kind=$type
    done </proc/self/mounts
    [ "$kind" = tmpfs ] || [ "$kind" = ramfs ]
}

# Makes the folder $1, unless it is there. False when it is somebody else's.
own_folder() {
    mkdir -p -- "$1"
    [ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ] && chmod 700 -- "$1"
}

remove_files() {
    for folder in "$memory" "$ours"; do
        [ ! -L "$folder" ] && rm -f -- "$folder"/.new.* "$folder/$1"
    done
}

gh=${GH_CONFIG_DIR:-${XDG_CONFIG_HOME:-$home/.config}/gh}/hosts.yml
gh_is_ours() {
    [ -L "$gh" ] || return
    case $(readlink -- "$gh") in
    "$memory/hosts.yml" | "$ours/hosts.yml") ;;
    *) return 1 ;;
    esac
}

is_late() {
    IFS= read -r last <"$ours/number"
    case $last in
    '' | *[!0-9]*) last=0 ;;
    esac
    [ "$SANDHOLD_NUMBER" -lt "$last" ]
}

note_number() {
    printf '%s\n' "$SANDHOLD_NUMBER" >"$ours/number.$$" && mv -f -- "$ours/number.$$" "$ours/number"
}

key=credential.https://$SANDHOLD_HOST.helper
helper='!sh ~/.sandhold/git/credential'
pattern='^!sh ~/\.sandhold/git/credential$'

# git config --global, which fails while somebody else changes the same file.
configure() {
    for pause in 0.1 0.2 0.4; do
        git config --global "$@" && return
        # 5: there was nothing to unset.
        [ $? = 5 ] && return
        sleep $pause || sleep 1
    done
    false
}
