// Package plain shows the schema's messages to people and reads what they type: enums as short
// words, times as they are said, foreign text made harmless, a call as a line of grpcurl. The
// command line and the web page share it, so that both say the same of a mail.
//
// It calls nobody and decides nothing.
package plain
