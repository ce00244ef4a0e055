# Clones a repository. It is run as a command by the launcher, and its text is fixed: what it works on comes by its
# environment, and reaches git behind an equals sign or behind `--`, so that nothing of it can be an option.
#
#   SANDHOLD_GIT_URL         what to clone: http or https, without any user
#   SANDHOLD_GIT_REF         a branch, a tag or a commit; empty for the default branch
#   SANDHOLD_GIT_PATH        the directory to be, absolute
#   SANDHOLD_GIT_MARK        by which a clone of this very call is known, in letters and digits
#   SANDHOLD_GIT_DEPTH       how many commits; empty for all
#   SANDHOLD_GIT_SUBMODULES  `yes` for those as well
#   SANDHOLD_GIT_GIVEN       `yes` when there is a credential; what it is and to whom git gives it, git is told by
#                            GIT_CONFIG_*, SANDHOLD_GIT_HELPER, SANDHOLD_GIT_USERNAME and SANDHOLD_GIT_PASSWORD
#
# Ends with git's own exit code, or: 80 something is at the path, 81 no git, 82 an old one, 83 no place for it.
# For whoever comes after, in the folder of the call: `clone` with path, mark and whether there was a credential, and
# empty files git-get, git-store, git-erase when git asked for the credential, when it was taken, and when refused.

url=$SANDHOLD_GIT_URL ref=$SANDHOLD_GIT_REF path=$SANDHOLD_GIT_PATH mark=$SANDHOLD_GIT_MARK depth=$SANDHOLD_GIT_DEPTH
folder=${path%/*}
part=$folder/.sandhold-clone-$mark
export SANDHOLD_GIT_STATE="${HOME:-/tmp}/.sandhold/calls/${SANDHOLD_CALL%/}"
printf '%s\n' "$path" "$mark" "$SANDHOLD_GIT_GIVEN" >"$SANDHOLD_GIT_STATE/clone" || exit 83

# What a sandbox's environment could bring along that would lead git elsewhere, or write down what it sends.
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_NAMESPACE \
    GIT_CONFIG GIT_CONFIG_PARAMETERS GIT_TEMPLATE_DIR GIT_EXEC_PATH GIT_SSH GIT_SSH_COMMAND GIT_PROXY_COMMAND SSH_ASKPASS \
    GIT_TRACE GIT_TRACE_CURL GIT_TRACE_PACKET GIT_TRACE_PACKFILE GIT_TRACE_SETUP GIT_CURL_VERBOSE GIT_TRACE_REDACT \
    GIT_TRACE2 GIT_TRACE2_EVENT GIT_TRACE2_PERF GIT_TRACE2_ENV_VARS LANGUAGE

is_ours() {
    [ "$(cat "$path/.git/sandhold-clone" 2>/dev/null)" = "$mark" ]
}

is_free() {
    [ -e "$path" ] || [ -L "$path" ] || return 0
    [ -d "$path" ] && [ ! -L "$path" ] && [ -z "$(ls -A -- "$path")" ]
}

occupied() {
    echo "$path exists and is not empty" >&2
    exit 80
}

command -v git >/dev/null || { echo 'git is not installed here' >&2; exit 81; }
version=$(git version)
version=${version#git version }
minor=${version#*.}
minor=${minor%%.*}
case ${version%%.*} in
[01]) old=yes ;;
2) [ "$minor" -lt 31 ] && old=yes ;;
esac
[ "$old" ] && { echo "git $version is too old: 2.31 is needed" >&2; exit 82; }

is_ours && exit 0
is_free || occupied
rm -rf -- "$part"
trap 'rm -rf -- "$part"' EXIT
trap 'exit 143' TERM INT HUP
mkdir -p -- "${folder:-/}" || exit 83

commit=
case $ref in
*[!0-9a-f]* | '') ;;
????????????????????????????????????????) commit=$ref ;;
????????????????????????????????????????????????????????????????) commit=$ref ;;
???????*)
    # The beginning of a commit, unless a branch or a tag has that name. To find it, all of the history is needed.
    git ls-remote --exit-code -- "$url" "refs/heads/$ref" "refs/tags/$ref" >/dev/null
    [ $? = 2 ] && commit=$ref depth=
    ;;
esac

set -- --progress --template= --origin=origin ${depth:+"--depth=$depth"}
if [ "$commit" ]; then
    set -- "$@" --no-checkout
elif [ "$ref" ]; then
    set -- "$@" "--branch=$ref"
fi
git clone "$@" -- "$url" "$part" || exit
if [ "$commit" ]; then
    git -C "$part" cat-file -e "$commit^{commit}" 2>/dev/null ||
        git -C "$part" fetch --progress ${depth:+"--depth=$depth"} -- origin "$commit" || exit
    git -C "$part" checkout --progress --detach "$commit" -- || exit
fi
if [ "$SANDHOLD_GIT_SUBMODULES" = yes ]; then
    git -C "$part" submodule update --init --recursive --progress ${depth:+"--depth=$depth"} || exit
fi

printf '%s\n' "$mark" >"$part/.git/sandhold-clone" || exit 83
is_free || occupied
[ -d "$path" ] && { rmdir -- "$path" || exit 83; }
mv -T -- "$part" "$path" 2>/dev/null || { [ ! -e "$path" ] && mv -- "$part" "$path"; } || exit 83
