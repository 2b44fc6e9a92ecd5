// Package codectest is what every format is held to: a conformance suite,
// synthetic disks of any size whose bytes cost no memory, sources that lie,
// fail and count, and the outside tools that must agree.
//
// A format's test is one line, and its golden hashes stand in its
// testdata/golden.json, rewritten by go test -update:
//
//	func TestFormat(t *testing.T) { codectest.Run(t, Format) }
//
// The suite measures allocations, so it must not run in a parallel test. It
// is imported by tests only.
package codectest
