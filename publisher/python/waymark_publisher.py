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
raises PublishError if it has not within `timeout`: because the broker is away,
frozen, blocked or lacks the queue, or refuses the message. A message that is
tried again keeps its id, so that it has its effect once.

ValueError tells of arguments that are wrong on their face: a workflow_uuid that
is none, a number or a dict that is something else or out of range, and what
JSON cannot say. What they hold is Waymark's to judge: it sets a message that it
cannot use aside, where `waymark dead-letters` shows it.

Publishers may be shared by threads, and by a process that forks.
"""

import datetime
import json
import logging
import operator
import os
import threading
import time
import uuid
import weakref

__all__ = ["PublishError", "WorkflowStatusPublisher", "WorkflowSubmissionPublisher"]

_log = logging.getLogger("waymark")


class PublishError(Exception):
    """The broker has not confirmed a message."""


class _Unroutable(Exception):
    """There is no such queue."""


# What leads to the broker: connected when made, and for one call at a time. Each
# step ends at `until`, a time.monotonic(), whatever the broker does; neither
# pika's blocking connection nor kombu's confirmed publishing can promise that.


class _Pika:
    """The way through pika."""

    def __init__(self, url, name, until):
        import pika

        self._pika = pika
        parameters = pika.URLParameters(url)
        parameters.client_properties = {"connection_name": name}
        # Who publishes every few minutes answers no heartbeats in between; a
        # connection that is gone is noticed by the next message.
        parameters.heartbeat = 0
        parameters.socket_timeout, parameters.stack_timeout = _left(until), None  # _await has the time of it all
        self._answer = None
        self._returned = False
        self._connection = pika.SelectConnection(
            parameters, on_open_callback=self._on_answer, on_open_error_callback=self._on_error,
            on_close_callback=self._on_error)
        try:
            self._await(until)
            self._channel = self._connection.channel(on_open_callback=self._on_answer)
            self._channel.add_on_close_callback(self._on_error)
            self._channel.add_on_return_callback(self._on_return)
            self._await(until)
            self._channel.confirm_delivery(self._on_answer, callback=self._on_answer)
            self._await(until)
        except BaseException:
            self.abort()
            raise

    def _on_answer(self, answer):
        self._answer = answer
        self._connection.ioloop.stop()

    def _on_error(self, _, error):
        self._on_answer(error if isinstance(error, Exception) else ConnectionError("disconnected"))

    def _on_return(self, *_):  # comes before the confirmation
        self._returned = True

    def _await(self, until):
        """What the broker answers to what was asked last."""
        loop, self._answer = self._connection.ioloop, None
        timer = loop.call_later(_left(until), loop.stop)
        try:
            loop.start()
        finally:
            loop.remove_timeout(timer)
        if self._answer is None:
            raise TimeoutError("no answer")
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def declare(self, queue, durable, arguments, until):
        self._channel.queue_declare(queue, durable=durable, arguments=arguments or None, callback=self._on_answer)
        self._await(until)

    def send(self, queue, body, message_id, priority, until):
        properties = self._pika.BasicProperties(
            content_type="application/json", content_encoding="utf-8", delivery_mode=2,
            message_id=message_id, priority=priority)
        self._returned = False
        self._channel.basic_publish("", queue, body, properties, mandatory=True)
        answer = self._await(until)
        if self._returned:
            raise _Unroutable(queue)
        if not isinstance(answer.method, self._pika.spec.Basic.Ack):
            raise PublishError("the broker refused the message")

    def close(self, until):
        try:
            self._connection.close()
            self._await_end(until)
        except Exception:  # it was gone already
            pass
        self.abort()

    def _await_end(self, until):
        while not self._connection.is_closed and time.monotonic() < until:
            try:
                self._await(until)
            except Exception:  # the end of the channel, that of the connection
                pass

    def abort(self):
        try:
            transport = getattr(self._connection, "_transport", None)  # pika shows no way to end without a farewell
            if transport is not None:
                transport.abort()
            elif not self._connection.is_closed:
                self._connection.close()
            self._await_end(time.monotonic() + 0.1)  # of pika: the broker has no part in it
        except Exception:
            pass
        self._connection.ioloop.close()


class _Kombu:
    """The way through kombu, and amqp below it."""

    def __init__(self, url, name, until):
        import amqp
        import kombu

        self._amqp = amqp
        # Each of the steps to a connection has a timeout of its own.
        step = _left(until) / 4
        transport = kombu.Connection(url, connect_timeout=step, transport_options={
            "client_properties": {"connection_name": name}}).transport
        self._connection, connection = None, transport.Connection

        def remembered(**options):  # to be closed if it does not come about
            self._connection = connection(**options)
            made = self._connection.Transport

            def bounded(*where, **how):  # amqp shakes hands for TLS without a timeout
                tcp = made(*where, **how)
                setup = tcp._setup_transport
                tcp._setup_transport = lambda: (tcp.sock.settimeout(step), setup())
                return tcp

            self._connection.Transport = bounded
            return self._connection

        transport.Connection = remembered
        self._answers, self._returned = [], False
        try:
            transport.establish_connection()
            self._bound(until)
            self._channel = self._connection.channel()
            self._channel.events["basic_ack"].add(lambda *_: self._answers.append(True))
            self._channel.events["basic_nack"].add(lambda *_: self._answers.append(False))
            self._channel.events["basic_return"].add(self._on_return)
            self._bound(until)
            self._channel.confirm_select()
        except BaseException:
            self.abort()
            raise

    def _on_return(self, *_):  # comes before the confirmation
        self._returned = True

    def _bound(self, until):
        self._connection.sock.settimeout(_left(until))

    def declare(self, queue, durable, arguments, until):
        self._bound(until)
        self._channel.queue_declare(queue, durable=durable, auto_delete=False, arguments=arguments or None)

    def send(self, queue, body, message_id, priority, until):
        del self._answers[:]
        self._returned = False
        message = self._amqp.Message(
            body, content_type="application/json", content_encoding="utf-8", delivery_mode=2,
            message_id=message_id, priority=priority)
        self._channel.basic_publish(message, routing_key=queue, mandatory=True, timeout=_left(until))
        while not self._answers:
            if time.monotonic() > until:
                raise TimeoutError("no answer")
            self._connection.drain_events(timeout=_left(until))
        if self._returned:
            raise _Unroutable(queue)
        if not self._answers[0]:
            raise PublishError("the broker refused the message")

    def close(self, until):
        try:
            self._bound(until)
            self._connection.close()
        except Exception:  # it was gone already
            pass
        self.abort()

    def abort(self):
        try:
            if self._connection is not None:
                if self._connection.connected:
                    self._connection.sock.settimeout(0.1)  # TLS has a farewell as well
                self._connection.collect()
        except Exception:
            pass


def _left(until):
    return max(until - time.monotonic(), 0.001)


def _backend(name):
    if name:
        return {"pika": _Pika, "kombu": _Kombu}[name]
    for module, backend in (("pika", _Pika), ("kombu", _Kombu)):
        try:
            __import__(module)
        except ImportError:
            continue
        return backend
    raise ImportError(
        "waymark_publisher needs pika or kombu, and this Python has neither: "
        "pip install pika or, for Debian's /usr/bin/python3, apt-get install python3-pika")


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
        timeout: seconds that a call may take in all, waiting for other threads'
            calls included. The first try has a third of it, so that a
            connection found dead is replaced. Only the resolver of names, if
            it hangs, keeps times of its own.
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
        if not 0 < self._timeout <= 1e6:
            raise ValueError("timeout is %r: expected seconds" % (timeout,))
        self._backend = _backend(backend)
        self._lock = threading.RLock()
        self._way = None
        _publishers.add(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Disconnect. A publisher that is used again connects again."""
        with self._lock:
            way, self._way = self._way, None
            if way is not None:
                way.close(time.monotonic() + min(self._timeout, 2))

    def _forget(self):
        # Of a fork: the connection is the parent's, and the lock may be held by
        # a thread that only the parent has. Closing the connection, even by
        # collecting it, could say good-bye in the parent's name.
        self._lock = threading.RLock()
        if self._way is not None:
            _of_parents.append(self._way)
            self._way = None

    def _publish(self, message, priority=0):
        deadline, message_id = time.monotonic() + self._timeout, str(uuid.uuid4())
        try:
            body = json.dumps(_clean(message), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError("the message is not JSON: %s" % error) from None
        except RecursionError:
            raise ValueError("the message is not JSON: it holds itself, or is too deep") from None
        if self._encoding == "reana":
            body = json.dumps(body)
        lock = self._lock
        if not lock.acquire(timeout=self._timeout):
            raise PublishError("the messages of other threads took all of %g s" % self._timeout)
        try:
            self._confirm(body.encode("ascii"), message_id, priority, deadline)
        finally:
            lock.release()

    def _confirm(self, body, message_id, priority, deadline):
        pause = 0.1
        while True:
            try:
                self._try(body, message_id, priority, min(deadline, time.monotonic() + max(self._timeout / 3, 1)))
                return
            except _Unroutable:
                raise PublishError("there is no queue %r: start waymark serve once, or check the topology" % self._queue) from None
            except Exception as refused:  # pika and kombu have dozens of them
                error = _without_password(refused, self._url)
            if time.monotonic() + pause > deadline:
                raise PublishError("the broker has not confirmed the message within %g s: %s" % (self._timeout, error))
            _log.warning("the broker does not take a message; trying again: %s", error)
            time.sleep(pause)
            pause = min(2 * pause, 5.0)

    def _try(self, body, message_id, priority, until):
        # Nobody else's while it is used: not even of a signal handler that publishes.
        way, self._way = self._way, None
        try:
            if way is None:
                way = self._backend(self._url, "waymark_publisher", until)
            try:
                way.send(self._queue, body, message_id, priority, until)
            except _Unroutable:
                way.declare(self._queue, self._topology != "reana" or self._durable_on_reana, self._arguments, until)
                way.send(self._queue, body, message_id, priority, until)
        except BaseException:
            if way is not None:
                way.abort()
            raise
        if self._way is None:
            self._way = way
        else:
            way.abort()


_publishers = weakref.WeakSet()
_of_parents = []


def _after_fork_in_child():
    for publisher in list(_publishers):
        publisher._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class WorkflowStatusPublisher(_Publisher):
    """Publishes jobs-status messages."""

    _queue_setting, _queue_default = "WAYMARK_BROKER_STATUS_QUEUE", "jobs-status"
    _durable_on_reana = False

    def publish_workflow_status(self, workflow_uuid, status, logs="", message=None, **more):
        """Say how a workflow is doing.

        workflow_uuid: its UUID.
        status: a number, or an enum of such: created 0, running 1, finished 2, failed 3, stopped 5, queued 6, pending 7.
        logs: text for the log of the run.
        message: {"progress": {"total" | "running" | "finished" | "failed" | "cached": {"total": int,
            "job_ids": [str]}}, "jobs": [{"job_id": str, "status": str, …}]}.
        more: further keys of the message, such as attempt and engine. event_time is now unless given.
        """
        body = {
            "workflow_uuid": str(uuid.UUID(str(workflow_uuid))),
            "status": _number("status", getattr(status, "value", status), 0, 7),
            "logs": "" if logs is None else str(logs),
            "message": _dict("message", message),
            "event_time": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        }
        body.update(more)
        self._publish(body)


class WorkflowSubmissionPublisher(_Publisher):
    """Publishes workflow-submission messages."""

    _queue_setting, _queue_default = "WAYMARK_BROKER_SUBMISSION_QUEUE", "workflow-submission"
    _arguments = {"x-max-priority": 100}

    def publish_workflow_submission(self, user_id, workflow_id_or_name, parameters, priority=0, min_job_memory=0, **more):
        """Register a workflow that is to run.

        user_id: who owns it. workflow_id_or_name: its UUID, or a name.
        parameters: a dict. priority: an int from 0 to 100. min_job_memory: bytes.
        more: further keys of the message, such as name, engine and labels.
        """
        priority = _number("priority", priority, 0, 100)
        min_job_memory = 0 if min_job_memory is None else min_job_memory
        if isinstance(min_job_memory, bool) or not isinstance(min_job_memory, (int, float)) or min_job_memory < 0:
            raise ValueError("min_job_memory is %r: expected bytes" % (min_job_memory,))
        body = {
            "user": str(user_id),
            "workflow_id_or_name": str(workflow_id_or_name),
            "parameters": _dict("parameters", parameters),
            "priority": priority,
            "min_job_memory": min_job_memory,
        }
        body.update(more)
        self._publish(body, priority)


def _one_of(what, value, allowed):
    if value not in allowed:
        raise ValueError("%s is %r: expected one of %s" % (what, value, ", ".join(allowed)))
    return value


def _number(what, value, low, high):
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if not low <= number <= high:
        raise ValueError("%s is %r: expected a whole number from %d to %d" % (what, value, low, high))
    return number


def _dict(what, value):
    if value is not None and not isinstance(value, dict):
        raise ValueError("%s is of type %s: expected a dict" % (what, type(value).__name__))
    return value or {}


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
