"""Publish the status of a workflow from Python, each message confirmed.

One file to copy; needs pika or kombu (Debian: python3-pika, python3-kombu) and
Python 3.8. The two publishing calls are those of reana_commons.publisher, so
that an engine written for REANA only changes its import:

    from waymark_publisher import WorkflowStatusPublisher

    with WorkflowStatusPublisher() as publisher:
        publisher.publish_workflow_status(uuid, 1, message={
            "progress": {"total": {"total": 2, "job_ids": []},
                         "running": {"total": 1, "job_ids": ["fit"]}}})

Unlike REANA's, a call returns when the broker has confirmed the message, and
raises if it has not within `timeout`: PublishError for a broker that is away,
refuses the message or lacks the queue, ValueError for a message that Waymark
would not take. A message that is tried again keeps its id, so that it has its
effect once. Publishers may be shared by threads, and by a process that forks.
"""

import datetime
import json
import logging
import os
import threading
import time
import uuid

__all__ = ["PublishError", "WorkflowStatusPublisher", "WorkflowSubmissionPublisher"]

_log = logging.getLogger("waymark")
_STATUSES = range(8)  # created 0 … pending 7


class PublishError(Exception):
    """The broker has not confirmed a message."""


class _Unroutable(Exception):
    """There is no such queue."""


class _Pika:
    """The way through pika."""

    def __init__(self, url, name):
        import pika

        self._pika = pika
        parameters = pika.URLParameters(url)
        parameters.client_properties = {"connection_name": name}
        # Who publishes every few minutes answers no heartbeats in between; a
        # connection that is gone is noticed by the next message.
        parameters.heartbeat = 0
        self._connection = pika.BlockingConnection(parameters)
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()

    def declare(self, queue, durable, arguments):
        self._channel.queue_declare(queue, durable=durable, arguments=arguments or None)

    def send(self, queue, body, message_id, priority):
        properties = self._pika.BasicProperties(
            content_type="application/json", content_encoding="utf-8", delivery_mode=2,
            message_id=message_id, priority=priority)
        try:
            self._channel.basic_publish("", queue, body, properties, mandatory=True)
        except self._pika.exceptions.UnroutableError:
            raise _Unroutable(queue) from None
        except self._pika.exceptions.NackError:
            raise PublishError("the broker refused the message") from None

    def close(self):
        self._connection.close()


class _Kombu:
    """The way through kombu."""

    def __init__(self, url, name):
        import kombu

        self._connection = kombu.Connection(url, connect_timeout=10, transport_options={
            "confirm_publish": True, "client_properties": {"connection_name": name}})
        self._connection.connect()
        self._channel = self._connection.channel()
        self._returned = []
        self._producer = kombu.Producer(self._channel, on_return=lambda *a: self._returned.append(a))

    def declare(self, queue, durable, arguments):
        self._channel.queue_declare(queue, durable=durable, auto_delete=False, arguments=arguments or None)

    def send(self, queue, body, message_id, priority):
        del self._returned[:]
        self._producer.publish(
            body, routing_key=queue, content_type="application/json", content_encoding="utf-8", delivery_mode=2,
            message_id=message_id, priority=priority, mandatory=True, timeout=30)
        if self._returned:
            raise _Unroutable(queue)

    def close(self):
        self._connection.release()


def _backend(name):
    if name:
        return {"pika": _Pika, "kombu": _Kombu}[name]
    for module, backend in (("pika", _Pika), ("kombu", _Kombu)):
        try:
            __import__(module)
        except ImportError:
            continue
        return backend
    raise ImportError("waymark_publisher needs pika or kombu: install Debian's python3-pika or python3-kombu")


class _Publisher:
    _queue_setting = _queue_default = ""
    _durable_on_reana = True
    _arguments = {}

    def __init__(self, url=None, queue=None, topology=None, encoding=None, timeout=30.0, backend=None, **ignored):
        """Nothing is connected before the first message.

        url: amqp://user:password@host:5672/vhost; default $WAYMARK_BROKER_URL.
        queue: default that of Waymark's configuration in the environment.
        topology: "durable" (default) or "reana"; default $WAYMARK_BROKER_TOPOLOGY.
        encoding: "json" (default) or "reana", JSON within a JSON string, for
            queues that a REANA consumer reads; default $WAYMARK_PUBLISHER_ENCODING.
        timeout: seconds that a call may take in all.
        backend: "pika" or "kombu"; default whichever is there.
        What else REANA's publishers take (routing_key, durable, …) is ignored.
        """
        self._url = url or os.environ.get("WAYMARK_BROKER_URL")
        if not self._url:
            raise ValueError("the broker is not known: give url, or set WAYMARK_BROKER_URL")
        self._queue = str(getattr(queue, "name", queue) or os.environ.get(self._queue_setting) or self._queue_default)
        self._topology = _one_of("topology", topology or os.environ.get("WAYMARK_BROKER_TOPOLOGY") or "durable", ("durable", "reana"))
        self._encoding = _one_of("encoding", encoding or os.environ.get("WAYMARK_PUBLISHER_ENCODING") or "json", ("json", "reana"))
        self._timeout = float(timeout)
        self._backend = _backend(backend)
        self._lock = threading.RLock()
        self._way = None
        self._pid = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Disconnect. A publisher that is used again connects again."""
        with self._lock:
            way, self._way = self._way, None
            if way is not None and self._pid == os.getpid():
                try:
                    way.close()
                except Exception:  # it was gone already
                    pass

    def _publish(self, message, priority=0):
        try:
            body = json.dumps(_clean(message), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError("the message is not JSON: %s" % error) from None
        if self._encoding == "reana":
            body = json.dumps(body)
        message_id, deadline, pause, declared = str(uuid.uuid4()), time.monotonic() + self._timeout, 0.1, False
        with self._lock:
            while True:
                try:
                    if self._way is None or self._pid != os.getpid():
                        self._way, self._pid = self._backend(self._url, "waymark_publisher"), os.getpid()
                    self._way.send(self._queue, body.encode("ascii"), message_id, priority)
                    return
                except _Unroutable:
                    if declared:
                        raise PublishError("there is no queue %r: start waymark serve once, or check the topology" % self._queue) from None
                    declared, error = True, None
                    try:
                        self._way.declare(self._queue, self._topology != "reana" or self._durable_on_reana, self._arguments)
                        continue
                    except Exception as refused:
                        error = refused
                except PublishError as refused:
                    error = refused
                except Exception as away:  # pika and kombu have dozens of them
                    error = away
                self.close()
                if time.monotonic() + pause > deadline:
                    raise PublishError("the broker has not confirmed the message within %g s: %s" % (
                        self._timeout, _without_password(error, self._url))) from None
                _log.warning("the broker does not take a message; trying again: %s", _without_password(error, self._url))
                time.sleep(pause)
                pause = min(2 * pause, 5.0)


class WorkflowStatusPublisher(_Publisher):
    """Publishes jobs-status messages."""

    _queue_setting, _queue_default = "WAYMARK_BROKER_STATUS_QUEUE", "jobs-status"
    _durable_on_reana = False

    def publish_workflow_status(self, workflow_uuid, status, logs="", message=None, **more):
        """Say how a workflow is doing.

        workflow_uuid: its UUID.
        status: a number, or an enum of such: running 1, finished 2, failed 3, stopped 5, queued 6, pending 7.
        logs: text for the log of the run.
        message: {"progress": {"total" | "running" | "finished" | "failed" | "cached": {"total": int,
            "job_ids": [str]}}, "jobs": [{"job_id": str, "status": str, …}]}.
        more: further keys of the message, such as attempt and engine. event_time is now unless given.
        """
        body = {
            "workflow_uuid": str(uuid.UUID(str(workflow_uuid))),
            "status": getattr(status, "value", status),
            "logs": "" if logs is None else str(logs),
            "message": {} if message is None else message,
            "event_time": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        }
        if isinstance(body["status"], bool) or body["status"] not in _STATUSES:
            raise ValueError("status is %r: expected a number from 0 to 7" % (status,))
        if not isinstance(body["message"], dict):
            raise ValueError("message is %r: expected a dict" % (type(message).__name__,))
        body.update(more)
        self._publish(body)


class WorkflowSubmissionPublisher(_Publisher):
    """Publishes workflow-submission messages."""

    _queue_setting, _queue_default = "WAYMARK_BROKER_SUBMISSION_QUEUE", "workflow-submission"
    _arguments = {"x-max-priority": 100}

    def publish_workflow_submission(self, user_id, workflow_id_or_name, parameters, priority=0, min_job_memory=0, **more):
        """Register a workflow that is to run.

        user_id: who owns it. workflow_id_or_name: its UUID, or a name.
        parameters: a dict. priority: 0 to 100. min_job_memory: bytes.
        more: further keys of the message, such as name, engine and labels.
        """
        if not 0 <= priority <= 100:
            raise ValueError("priority is %r: expected 0 to 100" % (priority,))
        body = {
            "user": str(user_id),
            "workflow_id_or_name": str(workflow_id_or_name),
            "parameters": {} if parameters is None else parameters,
            "priority": priority,
            "min_job_memory": min_job_memory,
        }
        body.update(more)
        self._publish(body, int(priority))


def _one_of(what, value, allowed):
    if value not in allowed:
        raise ValueError("%s is %r: expected one of %s" % (what, value, ", ".join(allowed)))
    return value


def _clean(value):
    """value without what no database can hold: NUL, and halves of surrogate pairs."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {_clean(str(k)): _clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(v) for v in value]
    if isinstance(value, uuid.UUID):
        return str(value)
    return value


def _without_password(error, url):
    text = "%s: %s" % (type(error).__name__, error) if str(error) else type(error).__name__
    credentials = url.rpartition("@")[0].rpartition("//")[2]
    for secret in (credentials, credentials.partition(":")[2]):
        if secret:
            text = text.replace(secret, "***")
    return text
