package client

import (
	"errors"
	"io"
	"net/http"
)

// maxAnswer bounds what is read of one answer. The largest honest one is a
// page of a token list.
const maxAnswer = 16 << 20

var errAnswerTooLarge = errors.New("the answer is larger than any answer of Nomad's")

// limitedTransport stops reading an answer that never ends.
type limitedTransport struct {
	next http.RoundTripper
	most int64 // bytes of one answer
}

func (t *limitedTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	// The api package asks for compression on its own: what that costs, see
	// newTransport, and it would unpack the answer after the limit.
	request = request.WithContext(request.Context())
	request.Header = request.Header.Clone()
	request.Header.Del("Accept-Encoding")
	response, err := t.next.RoundTrip(request)
	if err == nil {
		// Nobody asked for it, so nobody unpacks it past the limit.
		response.Header.Del("Content-Encoding")
		response.Body = &limitedBody{body: response.Body, left: t.most}
	}
	return response, err
}

// CloseIdleConnections lets http.Client.CloseIdleConnections reach the pool.
func (t *limitedTransport) CloseIdleConnections() {
	if closer, ok := t.next.(interface{ CloseIdleConnections() }); ok {
		closer.CloseIdleConnections()
	}
}

type limitedBody struct {
	body io.ReadCloser
	left int64
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errAnswerTooLarge
	}
	if int64(len(p)) > b.left {
		p = p[:b.left]
	}
	n, err := b.body.Read(p)
	b.left -= int64(n)
	return n, err
}

// Close reads the end mark of an answer that was read: without it, the
// connection could not be used again.
func (b *limitedBody) Close() error {
	_, _ = io.CopyN(io.Discard, b.body, 512)
	return b.body.Close()
}
