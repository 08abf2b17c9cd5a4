package maildispatchv1

// Version is the release of schema, service and client that this tree becomes. CHANGELOG.md
// says what is in it.
const Version = "v0.3.0"
