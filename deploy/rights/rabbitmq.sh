#!/bin/sh
# The least rights that Waymark needs in RabbitMQ. Run it where rabbitmqctl
# works. A user who is missing is created, with the password that standard
# input holds: nothing secret is on a command line of yours.
#
#   deploy/rights/rabbitmq.sh service  waymark  [VHOST] < password   # waymark serve
#   deploy/rights/rabbitmq.sh engine   engine   [VHOST] < password   # waymark run, publish; other engines
#   deploy/rights/rabbitmq.sh operator operator [VHOST] < password   # waymark dead-letters, ledger
#
# Only the service may declare queues: start it once before engines publish.
# WAYMARK_BROKER_STATUS_QUEUE and WAYMARK_BROKER_SUBMISSION_QUEUE name other
# queues than the usual ones. RABBITMQCTL names the program.
set -eu

ctl=${RABBITMQCTL:-rabbitmqctl}
role=${1-} user=${2-} vhost=${3-/}

# quoted makes a queue's name a regular expression that fits it alone.
quoted() { printf '%s' "$1" | sed 's/[][\.*^$+?(){}|/]/\\&/g'; }
queues="($(quoted "${WAYMARK_BROKER_STATUS_QUEUE:-jobs-status}")|$(quoted "${WAYMARK_BROKER_SUBMISSION_QUEUE:-workflow-submission}"))"
dead='\.dead-letter'
exchange='^amq\.default$' # by which every queue is written to
none='^$'
own='^amq\.gen-.*$'

# configure, write, read
case $role in
service) set -- "^$queues($dead)?\$" "$exchange" "^$queues\$" ;;
engine) set -- "$none" "$exchange" "$none" ;;
# A replay hears from the service through a queue of its own, amq.gen-….
operator) set -- "$own" "$exchange" "^($queues$dead|amq\.gen-.*)\$" ;;
*)
	echo "usage: $0 service|engine|operator USER [VHOST] < PASSWORD" >&2
	exit 2
	;;
esac
if [ -z "$user" ]; then
	echo "$0: missing USER" >&2
	exit 2
fi

# Standard input is for add_user alone.
if ! "$ctl" -q list_users --no-table-headers </dev/null | cut -f 1 | grep -Fqx -- "$user"; then
	"$ctl" -q add_user -- "$user"
fi
"$ctl" -q set_permissions -p "$vhost" -- "$user" "$1" "$2" "$3" </dev/null
