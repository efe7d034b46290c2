#!/bin/sh
# Runs a command on two nodes: two network namespaces that a virtual cable joins, at 10.77.0.1 and 10.77.0.2.
#
#     two_nodes.sh OUTPUT COMMAND...
#
# The command has its node's address as NODE and its number as NODE_RANK; the second node's output goes to OUTPUT.
# Run it in a network namespace of its own.
set -e
output=$1
shift
unshare --net sh -c 'read -r _ready && ip link set lo up && ip address add 10.77.0.2/24 dev far && ip link set far up &&
    NODE=10.77.0.2 NODE_RANK=1 GLOO_SOCKET_IFNAME=far exec "$@"' sh "$@" <"$output.ready" >"$output" 2>&1 &
far=$!
exec 3>"$output.ready" # a pipe: opened when the other side is
while [ "$(readlink /proc/$far/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.1; done
ip link add near type veth peer name far netns "$far"
ip address add 10.77.0.1/24 dev near
ip link set near up
echo >&3
NODE=10.77.0.1 NODE_RANK=0 GLOO_SOCKET_IFNAME=near "$@"
wait "$far"
