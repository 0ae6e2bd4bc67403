"use strict";
// The REST documentation, drawn by swagger-ui from this registry's own description.
SwaggerUIBundle({ url: "/openapi.json", dom_id: "#swagger", deepLinking: true, defaultModelsExpandDepth: 0, validatorUrl: null });
