# Puts git's credential in place, as a whole, or instead of the one before.
#
#   SANDHOLD_HOST        whom it is for
#   SANDHOLD_USERNAME, SANDHOLD_TOKEN
#   SANDHOLD_CREDENTIAL  the program that git asks for it
#   SANDHOLD_NAME, SANDHOLD_EMAIL  of the author of commits, unless git knows one; empty where nobody knows
#
# Answers `late yes` when nothing was done; else `place memory` or `place disk`, `git yes`, `no` or `locked`, and
# `gh yes` when its program finds the credential too; or `failed WHY`.

token=$SANDHOLD_TOKEN
unset SANDHOLD_TOKEN

put() {
    file=$folder/hosts.yml
    printf "%s:\n    user: '%s'\n    oauth_token: '%s'\n    git_protocol: https\n" \
        "$SANDHOLD_HOST" "$SANDHOLD_USERNAME" "$token" >"$folder/.new.$$" &&
        chmod 600 -- "$folder/.new.$$" && mv -f -- "$folder/.new.$$" "$file"
}

# A value before ours that is empty keeps git from asking others for this host, and from telling them to store it.
set_helper() {
    nothing_and_ours="
$helper"
    [ "$(git config --global --get-all "$key" | tail -n 2)" = "$nothing_and_ours" ] && return
    configure --unset-all "$key" "$pattern" && configure --add "$key" '' && configure --add "$key" "$helper"
}

set_author() {
    [ -z "$2" ] || [ "$(git config --get "$1")" ] || configure "$1" "$2"
}

link_gh() {
    if [ -L "$gh" ]; then gh_is_ours || return; else [ ! -e "$gh" ] || return; fi
    (umask 022 && mkdir -p -- "${gh%/*}") && ln -sf -- "$file" "$gh" && tell gh yes
}

install() {
    own_folder "$ours" || { tell failed folder; return; }
    is_late && { tell late yes; return; }
    note_number || { rm -f -- "$ours/number.$$"; tell failed file; return; }
    folder=$ours place=disk
    is_memory && own_folder "$memory" && folder=$memory place=memory
    printf '%s\n' "$SANDHOLD_CREDENTIAL" >"$ours/credential.$$" &&
        mv -f -- "$ours/credential.$$" "$ours/credential" || { tell failed file; return; }
    if ! put; then
        rm -f -- "$folder/.new.$$"
        # The memory may be full.
        folder=$ours place=disk
        put || { rm -f -- "$folder/.new.$$"; tell failed file; return; }
    fi
    case $place in
    disk) rm -f -- "$memory/hosts.yml" ;;
    memory) rm -f -- "$ours/hosts.yml" ;;
    esac
    tell place $place
    if ! command -v git >/dev/null; then
        tell git no
    elif set_helper && set_author user.name "$SANDHOLD_NAME" && set_author user.email "$SANDHOLD_EMAIL"; then
        tell git yes
    else
        tell git locked
    fi
    link_gh
}

echo "<$SANDHOLD_NONCE"
install
echo "$SANDHOLD_NONCE>"
