# One run of an agent's program: reads its task, and acts out its plan as nodes have it done.
# Usage: agent.sh DIRECTORY
dir=$1
read -r task

of() {
    rest=${task#*\"$1\":\"}
    echo "${rest%%\"*}"
}

exec sh "$dir/act.sh" "$dir" "$(of role)" "$(of count)" "$(of seconds)"
