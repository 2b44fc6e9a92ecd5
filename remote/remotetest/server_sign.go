package remotetest

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strings"
)

// authorize checks the signature of a request, as "Signature Calculations for
// the Authorization Header" of the S3 reference has it. It returns the status
// and code of the error, or none.
func (s *Server) authorize(r *http.Request, body []byte) (status int, code string) {
	auth, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return http.StatusForbidden, "AccessDenied"
	}
	fields := make(map[string]string)
	for f := range strings.SplitSeq(auth, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(f), "=")
		fields[name] = value
	}
	s.mu.Lock()
	keys := s.keys
	s.mu.Unlock()
	key, scope, _ := strings.Cut(fields["Credential"], "/")
	if key != keys[0] {
		return http.StatusForbidden, "InvalidAccessKeyId"
	}
	payload := r.Header.Get("X-Amz-Content-Sha256")
	switch {
	case strings.HasPrefix(payload, "STREAMING-"):
		return http.StatusNotImplemented, "NotImplemented"
	case payload != "UNSIGNED-PAYLOAD":
		if sum := sha256.Sum256(body); payload != hex.EncodeToString(sum[:]) {
			return http.StatusBadRequest, "XAmzContentSHA256Mismatch"
		}
	}
	hash := sha256.Sum256([]byte(canonical(r, fields["SignedHeaders"], payload)))
	text := strings.Join([]string{
		"AWS4-HMAC-SHA256", r.Header.Get("X-Amz-Date"), scope, hex.EncodeToString(hash[:]),
	}, "\n")
	sign := []byte("AWS4" + keys[1])
	for part := range strings.SplitSeq(scope, "/") {
		sign = mac(sign, part)
	}
	if want := hex.EncodeToString(mac(sign, text)); want != fields["Signature"] {
		return http.StatusForbidden, "SignatureDoesNotMatch"
	}
	return 0, ""
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// canonical is the canonical request: what a client signs the hash of.
func canonical(r *http.Request, signed, payload string) string {
	var query []string
	for name, values := range r.URL.Query() {
		for _, v := range values {
			query = append(query, escape(name, "")+"="+escape(v, ""))
		}
	}
	slices.Sort(query)
	var headers strings.Builder
	for name := range strings.SplitSeq(signed, ";") {
		value := strings.Join(r.Header.Values(name), ",")
		if name == "host" {
			value = r.Host
		}
		headers.WriteString(name + ":" + strings.Join(strings.Fields(value), " ") + "\n")
	}
	return strings.Join([]string{
		r.Method, escape(r.URL.Path, "/"), strings.Join(query, "&"), headers.String(), signed, payload,
	}, "\n")
}

// escape escapes all bytes but those RFC 3986 calls unreserved, and keep.
func escape(s, keep string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte("-._~"+keep, c) >= 0:
			b.WriteByte(c)
		default:
			b.WriteString("%" + strings.ToUpper(hex.EncodeToString([]byte{c})))
		}
	}
	return b.String()
}
