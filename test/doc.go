// Package test holds the tests that see imagefs as its users do: they drive
// bin/imagefs on real mounts with real clients, against a folder and a real S3
// server, and know nothing of the packages inside. "make test" builds what
// they drive and installs the tools they call.
//
// The import rules and the shape of the repository are tested here too.
package test
