// Package devstack runs a private RabbitMQ and a private PostgreSQL from the
// programs installed on this machine, for development, the demo and the tests.
//
// The servers are child processes. They listen on free loopback ports, keep all
// they write in one folder, ask for a password nobody else knows, and die with
// the process that started them, also when that is killed. Servers of somebody
// else are never used unless their URL is given, and are then never replaced.
//
// A folder can be used again, also after everything was killed in the middle:
// what an earlier process left running in it is ended first. One folder serves
// one process at a time.
//
// The servers refuse to run as root, or should; started by root they run as the
// users their packages made, else as nobody, and own their part of the folder.
//
// devstack does not install anything (see [Missing]) and is not for production:
// no replication, no tuning, and TLS only with certificates that are given.
package devstack
