package s3_test

import (
	"crypto/rand"
	"os"
	"testing"

	"imagefs/remote"
	"imagefs/remote/remotetest"
	"imagefs/remote/s3"
)

// TestStoreOverARealServer runs the suite over the bucket of the URL in
// IMAGEFS_TEST_S3, such as s3://bucket/folder, at the server and with the
// credentials of the AWS_ variables. It writes below that folder and does not
// clean up.
func TestStoreOverARealServer(t *testing.T) {
	url := os.Getenv("IMAGEFS_TEST_S3")
	if url == "" {
		t.Skip("IMAGEFS_TEST_S3 names no bucket")
	}
	bucket, prefix, err := s3.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	remotetest.Run(t, func(t *testing.T) remote.Store {
		return open(t, s3.Config{Bucket: bucket, Prefix: prefix + "/" + rand.Text()})
	})
}
