// health answers a kubelet's liveness probe for a CSI driver, as livenessprobe does: /healthz is 200
// while the driver's Probe says that it is ready, and 500 with the reason otherwise.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net/http"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func main() {
	address := flag.String("csi-address", "/run/csi/socket", "the driver's socket")
	listen := flag.String("http-endpoint", "", "address to listen on; instead of --health-port")
	port := flag.Int("health-port", 9808, "port to listen on, at every address")
	patience := flag.Duration("probe-timeout", time.Second, "how long the driver may take to answer")
	flag.Int("v", 0, "accepted, and means nothing")
	flag.Parse()
	if *listen == "" {
		*listen = fmt.Sprintf(":%d", *port)
	}
	connection, err := grpc.NewClient("unix:"+*address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	driver := csi.NewIdentityClient(connection)
	http.HandleFunc("/healthz", func(response http.ResponseWriter, request *http.Request) {
		deadline, cancel := context.WithTimeout(request.Context(), *patience)
		defer cancel()
		answer, err := driver.Probe(deadline, &csi.ProbeRequest{})
		switch {
		case err != nil:
			http.Error(response, err.Error(), http.StatusInternalServerError)
		case answer.Ready != nil && !answer.Ready.Value:
			http.Error(response, "the driver is not ready", http.StatusInternalServerError)
		default:
			fmt.Fprint(response, "ok")
		}
	})
	log.Printf("listening at %s", *listen)
	log.Fatal(http.ListenAndServe(*listen, nil))
}
