"""LitServe with batching: ``python lit.py MODEL PORT WORKERS BATCH DELAY_S``, in an environment of its own.

https://lightning.ai/docs/litserve/features/batching
"""

import sys

import litserve


class Api(litserve.LitAPI):
    def setup(self, device):
        import mlflow.pyfunc
        import numpy
        import pandas

        self.model = mlflow.pyfunc.load_model(sys.argv[1])
        schema = self.model.metadata.get_input_schema()
        names = None if schema.is_tensor_spec() else schema.input_names()
        self.table = numpy.array if names is None else lambda rows: pandas.DataFrame(rows, columns=names)

    def decode_request(self, request):
        return request["row"]

    def batch(self, inputs):
        return self.table(inputs)

    def predict(self, table):
        return self.model.predict(table)

    def unbatch(self, output):
        return output.tolist()

    def encode_response(self, output):
        return {"prediction": output}


if __name__ == "__main__":
    port, workers, size = map(int, sys.argv[2:5])
    api = Api(max_batch_size=size, batch_timeout=float(sys.argv[5]))
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers, fast_queue=True)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False)
