#!/bin/sh
# Serves what is mounted in a folder, as KServe does: one version, a model with its versions, or a whole repository.
#   serve-mounted NAME FOLDER [OPTION...]       options are those of `lenserve serve`
set -eu
name=$1 mounted=$2
shift 2

# A sidecar may bring the mount after the server has started: a link that leads nowhere yet.
waited=0
while [ -z "$(ls "$mounted/" 2>/dev/null)" ]; do
    [ "$waited" -lt "${MOUNT_TIMEOUT_S:-300}" ] || {
        echo "serve-mounted: $mounted is empty or missing after $waited s: mount a bundle, a model or a repository there" >&2
        exit 1
    }
    sleep 1
    waited=$((waited + 1))
done

holds_versions() {
    for manifest in "$1"/[1-9]*/manifest.json; do
        [ -e "$manifest" ] && return 0
    done
    return 1
}

repository=$mounted
if [ -e "$mounted/manifest.json" ] || holds_versions "$mounted"; then
    repository=$(mktemp -d)
    if [ -e "$mounted/manifest.json" ]; then
        mkdir "$repository/$name"
        ln -s "$mounted" "$repository/$name/1"
    else
        ln -s "$mounted" "$repository/$name"
    fi
fi
exec lenserve serve --repository "$repository" "$@"
