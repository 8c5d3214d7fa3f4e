// Package schemas is the message contract: the JSON Schema files, and the one
// way from the bytes of a message to a document that conforms to them.
//
// Reading is tolerant and the schema is strict. One step lies between: [Upcast]
// turns what REANA's engines really send, of today and of older releases, into
// the strict form. [Parse] is the whole way: limits, [Unwrap], decode, Upcast,
// [Validate]. What passes it conforms to the schema; what does not comes back as an
// [*Error] that says why and, by a JSON pointer, where.
//
// Of a property that is given twice the last counts, as in Python, which REANA's
// consumer reads with: both see one message. Who puts a validator in front must
// use one that takes the last, too. To refuse such messages was decided against:
// what REANA applies must not be lost here.
//
// Publishers send the strict form only, and check it with [Validate].
//
// The files keep the names and $ids of the schemas REANA's wiki proposed. Those
// were a draft: progress was not validated, the references did not resolve, and
// null was refused though most messages carry it.
//
// The package knows bytes and JSON, not the nouns of a run: turning a document
// into those is the business of the wire codec.
package schemas
