package s3

import (
	"errors"
	"testing"
	"time"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"imagefs/remote"
)

// ending is a source whose credentials end at a time and are due for renewal.
type ending struct {
	key   string
	end   time.Time
	err   error
	asked int
}

func (e *ending) IsExpired() bool                          { return true }
func (e *ending) Retrieve() (v credentials.Value, _ error) { return e.RetrieveWithCredContext(nil) }

func (e *ending) RetrieveWithCredContext(*credentials.CredContext) (credentials.Value, error) {
	e.asked++
	return credentials.Value{AccessKeyID: e.key, SecretAccessKey: "secret", Expiration: e.end}, e.err
}

func TestCredentialsNearTheirEnd(t *testing.T) {
	broken := errors.New("the metadata service is away")
	soon, past := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	for _, v := range []struct {
		name  string
		end   time.Time // of those that are due
		err   error     // of their renewal
		key   string
		want  error
		asked int // of three more requests
	}{
		{"renewed before the end", soon, nil, "new", nil, 3},
		{"renewed after the end", past, nil, "new", nil, 3},
		{"good until the end, not asked for again at once", soon, broken, "old", nil, 1},
		{"not to be renewed after the end", past, broken, "", remote.ErrUnavailable, 3},
	} {
		t.Run(v.name, func(t *testing.T) {
			from := &ending{key: "old", end: v.end}
			creds := credentials.New(&chain{sources: []source{{"a test", from}}})
			if got, err := creds.GetWithContext(nil); err != nil || got.AccessKeyID != "old" {
				t.Fatalf("first: got key %q, error %v", got.AccessKeyID, err)
			}
			*from = ending{key: "new", end: v.end, err: v.err}
			for range 3 {
				got, err := creds.GetWithContext(nil)
				if !errors.Is(err, v.want) || got.AccessKeyID != v.key {
					t.Errorf("got key %q, error %v; want %q, %v", got.AccessKeyID, err, v.key, v.want)
				}
				if err != nil && !judge(err).again {
					t.Errorf("error %v is not worth another attempt", err)
				}
			}
			if from.asked != v.asked {
				t.Errorf("the source was asked %d times, want %d", from.asked, v.asked)
			}
		})
	}
}
