// Package spool keeps messages on disk that a broker has not confirmed, until
// somebody delivers them.
//
// A spool is a folder of segments. Each process appends to a segment of its
// own, with a [Writer]; whoever drains the folder takes one [Segment] after the
// other. An exclusive flock on a segment says who owns it at the moment, so any
// number of processes may write and drain one folder at once, and no message is
// drained by two of them. (On a network file system flock must work between
// machines, as it does on NFS under Linux.)
//
// # Segments
//
// A segment is a file NAME.spool, whose names sort by age. It begins with the
// seven bytes "waymark" and a version, 1. Then come frames:
//
//	length  4 bytes, big endian: of the payload
//	sum     4 bytes, big endian: CRC-32C of the length and the payload
//	payload 1 byte that says what it is, and the rest
//
// The payload is "O", once, and JSON with the segment's [Origin]; or "M", the
// length (4 bytes) of a JSON object with the message's properties, that object,
// and the body; or "D" and the offset (8 bytes) of the frame of a message that
// is done: delivered, or dropped. A segment of which all messages are done is
// removed.
//
// # What it guarantees
//
// What was appended before a [Writer.Sync] that returned nil survives the death
// of the process and of the machine. A torn write, which can only be at the end
// of a segment, is cut off when the segment is opened. Damage elsewhere costs
// only what is behind it in the segment, and nothing is deleted for it: those
// bytes are moved to a file NAME.damaged. A file of another version, or that is
// no segment, is left alone.
//
// A message may be drained twice, if somebody dies between its delivery and the
// note of it. It has the same message-id then.
//
// The folder must not be writable by others; it is made with mode 0700, files
// with 0600.
package spool
