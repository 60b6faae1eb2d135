#!/bin/sh
# Checks what the other steps need and names everything that is missing, one line each.
# In sh and not in Python, so that it can say that Python is missing.
#
#   check-tools.sh REPOSITORY

repo=${1:?usage: check-tools.sh REPOSITORY}
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_COMMON_DIR GIT_PREFIX
LC_ALL=C
export LC_ALL
problems=0

problem() {
    echo "check-tools: $1" >&2
    problems=1
}

if ! command -v python3 >/dev/null 2>&1; then
    problem "python3 is not on the PATH: install Python 3.8 or newer"
elif ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))'; then
    problem "$(python3 --version 2>&1) is too old: install Python 3.8 or newer"
fi

if ! command -v git >/dev/null 2>&1; then
    problem "git is not on the PATH: install Git"
elif [ ! -d "$repo" ]; then
    problem "$repo is not a directory: name a Git repository with --var repo=PATH"
elif ! answer=$(git -C "$repo" rev-parse --git-dir 2>&1); then
    case $answer in
        *"not a git repository"*) problem "$repo is not a Git repository: name one with --var repo=PATH, or run git init there" ;;
        *) problem "git cannot open $repo: $(echo "$answer" | head -n 1)" ;;
    esac
fi

[ "$problems" -eq 0 ] || exit 1
version=$(git --version)
python=$(python3 --version 2>&1)
printf '{"git": "%s", "python": "%s"}\n' "${version#git version }" "${python#Python }"
