# What git runs to get the credential, or to hear what became of it: $1 is get, store or erase. Only builtins see it.
printf '' >"$SANDHOLD_GIT_STATE/git-$1"
[ "$1" = get ] && printf 'username=%s\npassword=%s\n' "$SANDHOLD_GIT_USERNAME" "$SANDHOLD_GIT_PASSWORD"
exit 0
