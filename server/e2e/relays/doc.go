// Package relays tests the built binary against two real mail servers as relays, Postfix and
// Exim, each with a private configuration on a loopback port.
//
// The tests need root and both programs, so they carry the build tag "relays". install.sh
// installs what is missing; CONTRIBUTING.md has the two lines. What a scripted server can play
// (faults, timing, crashes) is tested in server/e2e and smtpx; here stands what only a foreign
// implementation can prove: that its TLS, its login, its pipelining and its replies are
// understood, and that a stored mail reads as it was asked for.
package relays
